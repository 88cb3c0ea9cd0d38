--!include _common
-- Count the messages of a queue by what they wait for.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue
-- RETURN  {ready (messages and sequences a free worker could take), in sequences that are ready or
--          held, in sequences that wait for their time, in sequences behind a dead letter (it included),
--          delayed, dead letters}
-- COST  O(sequences with unsettled messages)
local queue = ARGV[2]
local ready = 0
for _, pri in ipairs(steps_in_use({queue})[1]) do ready = ready + call('LLEN', ready_key(queue, pri)) end
local waiting, retrying = {r = 0, h = 0, l = 0, d = 0}, 0
local states = call('HGETALL', C .. 'seqs:' .. queue)
for i = 1, #states, 2 do
  local kind = string.sub(states[i + 1], 1, 1)
  if kind == 'l' then retrying = retrying + 1 end
  waiting[kind] = waiting[kind] + call('LLEN', seq_key(queue, states[i]))
end
return {ready, waiting.r + waiting.h, waiting.l, waiting.d,
  call('ZCARD', C .. 'delayed:' .. queue) - retrying, call('HLEN', C .. 'dead:' .. queue)}
