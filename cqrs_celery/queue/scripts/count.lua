--!include _common _counts
-- Count the messages of a queue by what they wait for.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue
-- RETURN  {ready (messages and sequences a free worker could take), in sequences that are ready or
--          held, in sequences that wait for their time, in sequences behind a dead letter (it included),
--          delayed, dead letters; how many sequences are ready or held, wait for their time, are behind
--          a dead letter}
-- COST  O(1); 8 commands; O(sequences with unsettled messages) where the counts can't be relied on: see
--       _counts
local queue = ARGV[2]
local ready = 0
for _, pri in ipairs(steps_in_use({queue})[1]) do ready = ready + call('LLEN', ready_key(queue, pri)) end
local n = counts_of(queue, false)
local going = n.all - n.l - n.d
return {ready, n.b + n.x + going, n.lb + n.l, n.db + n.d,
  call('ZCARD', C .. 'delayed:' .. queue) - n.l, call('HLEN', C .. 'dead:' .. queue), going, n.l, n.d}
