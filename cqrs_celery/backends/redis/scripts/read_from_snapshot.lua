-- Read a stream's snapshot, and the events behind it.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 application and aggregate type   3 id   4 stream   5 schema version
-- RETURN  {snapshot, record, …} oldest first, as both are kept; without one of the schema version,
--         {"", record, …} with all events
-- COST  O(events behind it); 2 commands
local C = ARGV[1] .. 'cq:'
local call = redis.call
local snapshot = call('HGET', C .. 'snapshots:' .. ARGV[2], ARGV[3]) or ''
local schema, version = string.match(snapshot, '^(%d+)\31(%d+)\31')
if schema ~= ARGV[5] then snapshot, version = '', '0' end
local result = call('LRANGE', C .. 'stream:' .. ARGV[4], version, -1)
table.insert(result, 1, snapshot)
return result
