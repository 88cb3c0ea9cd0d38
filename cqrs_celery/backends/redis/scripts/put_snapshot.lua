-- Keep a snapshot in place of its stream's last one, unless that is newer.
--
-- cq:snapshots:<application>:<aggregate type>  HASH id ->
--                  "<schema version>\31<version>\31<taken at, µs>\31<data>"
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 application and aggregate type   3 id   4 schema version   5 version
--       6 the snapshot as it is kept
-- RETURN  1 if it is kept, 0 if not
-- COST  2 commands
local C = ARGV[1] .. 'cq:'
local call = redis.call
local key = C .. 'snapshots:' .. ARGV[2]
local schema, version = string.match(call('HGET', key, ARGV[3]) or '', '^(%d+)\31(%d+)\31')
if schema == ARGV[4] and tonumber(version) > tonumber(ARGV[5]) then return 0 end
call('HSET', key, ARGV[3], ARGV[6])
return 1
