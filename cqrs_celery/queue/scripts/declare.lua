--!include _common
-- Make a queue known, and say how long it lives unused: without consumers, and not declared anew; and
-- for how long a message may wait in it.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 ms that it lives (0: for ever)
--       4 ms that a message may wait (0: for ever; "": as was declared before)
-- RETURN  1 if it was unknown, else 0
-- COST  O(1); 3 commands, 4 with a limit for messages
local new = call('SADD', C .. 'queues', ARGV[2])
if tonumber(ARGV[3]) > 0 then
  call('HSET', C .. 'lifetime', ARGV[2], ARGV[3])
  call('ZADD', C .. 'expiring', now_ms() + tonumber(ARGV[3]), ARGV[2])
else
  call('ZREM', C .. 'expiring', ARGV[2])
  call('HDEL', C .. 'lifetime', ARGV[2])
end
if ARGV[4] == '0' then
  call('HDEL', C .. 'ttl', ARGV[2])
elseif ARGV[4] ~= '' then
  call('HSET', C .. 'ttl', ARGV[2], ARGV[4])
end
return new
