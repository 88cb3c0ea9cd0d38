--!include _common _settle _letters
-- Tell a bare number that somebody has pushed into a list from the message of another queue whose id it
-- is. The number becomes a dead letter of the queue where it lay; the message stays where it is.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 id and   4 fence of a delivery   5 its queue   6 the queue that its
--       message says it was published to   7 the sequence that it says ("" for none)   8 the letter's text
-- RETURN  1 if it was a number; 0 if the message is nowhere else, as one that was moved by hand, or the
--         consumer does not hold it
-- COST  O(messages of the other queue, or of the sequence, + consumers); for a delivery whose message
--       names another queue than it came from, so in good order never
local consumer, id, queue, other, seq = ARGV[2], ARGV[3], ARGV[5], ARGV[6], ARGV[7]
local flight = C .. 'flight:' .. consumer
local fence, pri = string.match(call('HGET', flight, id) or '', '^(%d+)|(%d+)|')
if fence ~= ARGV[4] then return 0 end

-- The other name is what the message says; under it there may be a key of another kind.
local function stands_in(key)
  return type(redis.pcall('LPOS', key, id)) == 'number'
end

local function is_elsewhere()
  if seq ~= '' and stands_in(seq_key(other, seq)) then return true end
  for _, step in ipairs(steps_in_use({other})[1]) do
    if stands_in(ready_key(other, step)) then return true end
    if call('ZSCORE', C .. 'delayed:' .. other, step .. '|' .. id .. '|' .. seq) then return true end
  end
  if call('HGET', C .. 'dead:' .. other, id) then return true end
  for _, who in ipairs(call('ZRANGE', C .. 'consumers', 0, -1)) do
    if who ~= consumer and call('HGET', C .. 'flight:' .. who, id) then return true end
  end
  return false
end

if not is_elsewhere() then return 0 end
call('HDEL', flight, id)
local own = tostring(call('INCR', C .. 'id'))
call('HSET', C .. 'msg', own, whole(id))
bury(own, queue, pri, '', now_ms(), '0', ARGV[8])
return 1
