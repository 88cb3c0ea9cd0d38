--!include _common
-- Become the one relay of a store whose events are given: what another one gives counts nothing then.
-- Nothing is done for a claim that is older than the one that was seen last, by the number that begins
-- its token, or that was made for another broker.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 store id   3 the relay's token: "<number of its claim>.<anything>"
--       4 5 position and event id to go on behind, in place of what is known; '' for what is known
--       6 the broker's id, as the claim was made; '' to not look
-- RETURN  the position and the event's id, '' if that is not known, and the number of the last message
--         of before it went back, since what is given again has higher ones; false if nothing is known;
--         0 if the claim is lost
-- COST  4
local at, id, floor = ARGV[4], ARGV[5], call('GET', C .. 'id') or '0'
if ARGV[6] ~= '' and call('GET', C .. 'broker') ~= ARGV[6] then return 0 end
local known = call('HGET', C .. 'relay', ARGV[2])
local function number_of(token) return tonumber(string.match(token or '', '^(%d+)%.')) or 0 end
if known and number_of(string.match(known, '^%d+|[^|]*|([^|]*)|')) > number_of(ARGV[3]) then return 0 end
if at == '' then
  if not known then return false end
  at, id, floor = string.match(known, '^(%d+)|([^|]*)|[^|]*|(%d+)$')
  -- An earlier version knew no more than the position.
  if not at then at, id, floor = string.match(known, '^%d+'), '', '0' end
end
call('HSET', C .. 'relay', ARGV[2], at .. '|' .. id .. '|' .. ARGV[3] .. '|' .. floor)
return {at, id, floor}
