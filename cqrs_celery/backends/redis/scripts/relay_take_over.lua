--!include _common
-- Become the one relay of a store whose events are given: what another one gives counts nothing then.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 store id   3 the relay's token
--       4 5 position and event id to go on behind, in place of what is known; '' for what is known
-- RETURN  the position and the event's id, '' if that is not known; false if nothing is known
-- COST  2
local at, id = ARGV[4], ARGV[5]
if at == '' then
  local known = call('HGET', C .. 'relay', ARGV[2])
  if not known then return false end
  at, id = string.match(known, '^(%d+)|([^|]*)|')
  -- An earlier version knew no more than the position.
  if not at then at, id = known, '' end
end
call('HSET', C .. 'relay', ARGV[2], at .. '|' .. id .. '|' .. ARGV[3])
return {at, id}
