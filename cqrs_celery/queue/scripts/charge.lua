--!include _common
-- Note which messages of a remainder count a delivery, before the first slice of it is given back: else
-- whoever went on after a recovery was broken off would choose anew, among what is left.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 remainder, see end_consumers   3 ids that count, with spaces between, or "*" for all
-- RETURN  what holds: the ids that were noted first; false where nothing is left of it
-- COST  3 commands
local text = call('HGET', C .. 'about', ARGV[2])
if not text then return false end
local known = cjson.decode(text)
if not known.charged then
  known.charged = ARGV[3]
  call('SREM', C .. 'idle', ARGV[2])
  call('HSET', C .. 'about', ARGV[2], cjson.encode(known))
end
return known.charged
