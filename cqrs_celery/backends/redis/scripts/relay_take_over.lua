--!include _common
-- Become the one relay of a store whose events are given: what another one gives counts nothing then.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 store id   3 the relay's token
--       4 5 position and event id to go on behind, in place of what is known; '' for what is known
-- RETURN  the position and the event's id, '' if that is not known, and the number of the last message
--         of before it went back, since what is given again has higher ones; false if nothing is known
-- COST  3
local at, id, floor = ARGV[4], ARGV[5], call('GET', C .. 'id') or '0'
if at == '' then
  local known = call('HGET', C .. 'relay', ARGV[2])
  if not known then return false end
  at, id, floor = string.match(known, '^(%d+)|([^|]*)|[^|]*|(%d+)$')
  -- An earlier version knew no more than the position.
  if not at then at, id, floor = string.match(known, '^%d+'), '', '0' end
end
call('HSET', C .. 'relay', ARGV[2], at .. '|' .. id .. '|' .. ARGV[3] .. '|' .. floor)
return {at, id, floor}
