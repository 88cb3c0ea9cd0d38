--!include _common
-- Say which queues a consumer is to be woken for, and what it is, in place of what it said before.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 what is known of it, a JSON object   4… queues
-- RETURN  the number of queues; -1 if the consumer is unknown, since its lease has ended and it was
--         recovered: then nothing is written, for nobody would delete it again
-- COST  O(queues before and now); 7 commands, and 2 for each queue that is new or gone
if not call('ZSCORE', C .. 'consumers', ARGV[2]) then return -1 end
local mine = C .. 'queues_of:' .. ARGV[2]
local before, new, gone = {}, {}, {}
for _, queue in ipairs(call('SMEMBERS', mine)) do before[queue] = true end
for i = 4, #ARGV do
  -- Kept until it is seen that it is among them; one that is named twice is new once.
  if before[ARGV[i]] == nil then new[#new + 1] = ARGV[i] end
  before[ARGV[i]] = false
end
for queue, is_gone in pairs(before) do
  if is_gone then gone[#gone + 1] = queue end
end
-- First, so that a full server does not refuse the rest.
call('HDEL', C .. 'about', ARGV[2])
call('HSET', C .. 'about', ARGV[2], ARGV[3])
call_with('SREM', mine, gone)
call_with('SADD', mine, new)
call('SADD', C .. 'callable', ARGV[2])
for _, queue in ipairs(gone) do
  call('SREM', C .. 'consuming:' .. queue, ARGV[2])
  call('SREM', C .. 'idle:' .. queue, ARGV[2])
end
for _, queue in ipairs(new) do
  call('SADD', C .. 'consuming:' .. queue, ARGV[2])
  call('SADD', C .. 'idle:' .. queue, ARGV[2])
end
return #ARGV - 3
