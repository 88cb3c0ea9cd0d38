--!include _common
-- Forget consumers that are gone and of which something is left, as an older release left what it wrote
-- about a consumer that had been recovered.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 cursor, as the last call has returned it; "0" to begin
-- RETURN  {the next cursor, "0" at the end; how many were forgotten}
-- COST  O(100 consumers, and the queues of those that are gone)
local about = C .. 'about'
local cursor, entries = unpack(call('HSCAN', about, ARGV[2], 'COUNT', 100))
local count = 0
for i = 1, #entries, 2 do
  local consumer = entries[i]
  if not call('ZSCORE', C .. 'consumers', consumer)
    and call('EXISTS', C .. 'flight:' .. consumer) == 0 then
    for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
      call('SREM', C .. 'consuming:' .. queue, consumer)
    end
    call('DEL', C .. 'queues_of:' .. consumer)
    call('SREM', C .. 'idle', consumer)
    call('HDEL', about, consumer)
    count = count + 1
  end
end
return {cursor, count}
