--!include _common _fanout
-- Give events of another store to their subscribers, each once, and remember how far that has come.
--
-- cq:relay  HASH store id -> position of the last event that was given
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 store id   3 position behind which the events stand
--       4… for each event: position, topic, event id, root id and parent id as they stand inside JSON
--           strings, stream, body
-- RETURN  the position now; another one than that of the last event if it was not at ARGV[3] before:
--         then nothing was given. False if none is known
-- COST  2, and per subscriber 4
local at = call('HGET', C .. 'relay', ARGV[2])
if at ~= ARGV[3] then return at end
for i = 4, #ARGV, 7 do
  fanout(ARGV[i + 1], ARGV[i + 6], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
  at = ARGV[i]
end
call('HSET', C .. 'relay', ARGV[2], at)
return at
