--!include _common
-- Name the queues that have expired; those that have consumers live on.
--
-- KEYS  1 routing key
-- ARGV  1 prefix
-- RETURN  the names of at most 100 queues, which are unknown from now on; their messages are still there
-- COST  O(expired)
local now, gone = now_ms(), {}
for _, queue in ipairs(call('ZRANGEBYSCORE', C .. 'expiring', '-inf', '(' .. now, 'LIMIT', 0, 100)) do
  if call('SCARD', C .. 'consuming:' .. queue) > 0 then
    call('ZADD', C .. 'expiring', now + tonumber(call('HGET', C .. 'lifetime', queue)), queue)
  else
    call('ZREM', C .. 'expiring', queue)
    call('HDEL', C .. 'lifetime', queue)
    for _, set in ipairs({'queues', 'called', 'raw'}) do call('SREM', C .. set, queue) end
    gone[#gone + 1] = queue
  end
end
return gone
