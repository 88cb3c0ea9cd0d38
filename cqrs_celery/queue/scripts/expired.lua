--!include _common
-- Name the queues that have expired; those that have consumers live on. purge.lua deletes the others.
--
-- KEYS  1 routing key
-- ARGV  1 prefix
-- RETURN  the names of at most 100 queues
-- COST  O(expired)
local now, gone = now_ms(), {}
for _, queue in ipairs(call('ZRANGEBYSCORE', C .. 'expiring', '-inf', '(' .. now, 'LIMIT', 0, 100)) do
  if call('SCARD', C .. 'consuming:' .. queue) > 0 then
    call('ZADD', C .. 'expiring', now + tonumber(call('HGET', C .. 'lifetime', queue)), queue)
  else
    gone[#gone + 1] = queue
  end
end
return gone
