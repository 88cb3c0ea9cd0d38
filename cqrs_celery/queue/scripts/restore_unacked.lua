--!include _common
-- Put messages that stock workers had taken and not acknowledged back to the head of their queues.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 stock's hash of them   3 its index, a sorted set   4… for each message, the one
--       taken last first: its tag, the message, the number of its queues, then queue and priority step
--       for each of them
-- RETURN  how many were put back; one that is no longer in the hash is left out
-- COST  O(log n) for each message
local i, done = 4, 0
while i <= #ARGV do
  local tag, message, queues = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local is_there = call('HDEL', ARGV[2], tag) == 1
  if is_there then
    call('ZREM', ARGV[3], tag)
    done = done + 1
  end
  for n = 0, queues - 1 do
    if is_there then push_ready(ARGV[i + 3 + n * 2], ARGV[i + 4 + n * 2], message, true) end
  end
  i = i + 3 + queues * 2
end
return done
