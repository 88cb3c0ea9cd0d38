--!include _common
-- Take up the queues' upkeep, which one consumer at a time does, and look whether consumers are there that
-- keep no counts; forget what such a one has left of others.
--
-- cq:upkeep  STRING the consumer that does it, for a time
--
-- A consumer says in cq:about of which format it is; one of a release before 2 does not, or says nothing
-- there. Whoever consumes no queues takes by hand, a message at a time, and is passed over.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 ms for which nobody else may   4 ms for which an old consumer that was
--       seen is thought to be there
-- RETURN  {0 if another one does it; how many old consumers there are}
-- COST  1 command for all but one; for that one, O(consumers)
local holder = call('SET', C .. 'upkeep', ARGV[2], 'NX', 'PX', ARGV[3])
if not holder then return {0, 0} end
local old, names = 0, call('ZRANGE', C .. 'consumers', 0, -1)
for i, about in ipairs(call_with('HMGET', C .. 'about', names)) do
  local says_so = about and string.find(about, '"format":', 1, true)
  if not says_so and call('EXISTS', C .. 'queues_of:' .. names[i]) == 1 then old = old + 1 end
end
-- Recovered by a consumer of a release that knows nothing of these sets: wake_older() counts them.
local listed, gone = call('SMEMBERS', C .. 'callable'), {}
for i, known in ipairs(call_with('ZMSCORE', C .. 'consumers', listed)) do
  if not known then gone[#gone + 1] = listed[i] end
end
call_with('SREM', C .. 'callable', gone)
call_with('SREM', C .. 'busy', gone)
if old > 0 then
  call('SET', C .. 'old_until', string.format('%.0f', now_ms() + tonumber(ARGV[4])))
end
return {1, old}
