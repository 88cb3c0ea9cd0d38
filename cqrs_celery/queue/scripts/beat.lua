--!include _common
-- Renew a consumer's lease by Redis's clock. An ended lease that nobody recovered yet is renewed too.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 lease in ms   4 "1" to register a consumer that is unknown
-- RETURN  {1 if the lease holds, 0 if it was recovered meanwhile; when the first of all leases ends, ms;
--          ms of Redis's clock; how many unused queues have expired; how many dead letters are due}
-- COST  O(log consumers); 7 commands
local now = now_ms()
local known = call('ZSCORE', C .. 'consumers', ARGV[2])
if known or ARGV[4] == '1' then
  call('ZREM', C .. 'consumers', ARGV[2])
  call('ZADD', C .. 'consumers', now + tonumber(ARGV[3]), ARGV[2])
end
local first_end = call('ZRANGE', C .. 'consumers', 0, 0, 'WITHSCORES')[2] or now
return {(known or ARGV[4] == '1') and 1 or 0, tonumber(first_end), now,
  call('ZCOUNT', C .. 'expiring', '-inf', '(' .. now),
  call('ZCOUNT', C .. 'redrive', '-inf', now)}
