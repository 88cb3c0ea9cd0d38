--!include _common _counts _fanout
-- Give events of another store to their subscribers, each once, and remember how far that has come.
--
-- cq:relay  HASH store id -> position of the last event that was given | its id | the relay's token
--           | number of the last message of before it went back
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 store id   3 the relay's token   4 position behind which the events stand
--       5… for each event: position, topic, event id, root id and parent id as they stand inside JSON
--           strings, stream, body
-- RETURN  the position now; another one than that of the last event if it was not at ARGV[4] before,
--         or if another relay has taken over: then nothing was given. False if none is known
-- COST  2, and per subscriber 4
local known = call('HGET', C .. 'relay', ARGV[2])
if not known then return false end
local at, token, floor = string.match(known, '^(%d+)|[^|]*|([^|]*)|(%d+)$')
if at ~= ARGV[4] or token ~= ARGV[3] then return at or string.match(known, '^%d+') end
local id
for i = 5, #ARGV, 7 do
  fanout(ARGV[i + 1], ARGV[i + 6], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
  at, id = ARGV[i], ARGV[i + 2]
end
save_counts()
call('HSET', C .. 'relay', ARGV[2], at .. '|' .. id .. '|' .. ARGV[3] .. '|' .. floor)
return at
