--!include _common
-- Say which queues a consumer is to be woken for, and what it is, in place of what it said before.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 what is known of it, a JSON object   4… queues
-- RETURN  the number of queues; -1 if the consumer is unknown, since its lease has ended and it was
--         recovered: then nothing is written, for nobody would delete it again
-- COST  O(queues before and now)
if not call('ZSCORE', C .. 'consumers', ARGV[2]) then return -1 end
local mine = C .. 'queues_of:' .. ARGV[2]
for _, queue in ipairs(call('SMEMBERS', mine)) do call('SREM', C .. 'consuming:' .. queue, ARGV[2]) end
call('DEL', mine)
call('HSET', C .. 'about', ARGV[2], ARGV[3])
for i = 4, #ARGV do
  call('SADD', mine, ARGV[i])
  call('SADD', C .. 'consuming:' .. ARGV[i], ARGV[2])
end
return #ARGV - 3
