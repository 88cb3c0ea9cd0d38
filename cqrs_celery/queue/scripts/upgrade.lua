--!include _common
-- Raise the number of the form of the keys to the one that the caller writes, and never lower it.
--
-- cq:format  STRING
--   missing  the form of releases that keep no counts
--   2        the same keys, and counts of what stands in sequences: see _counts. Both forms work side by
--            side, so nothing is changed here but the number
-- A caller that finds a higher number than its own must not touch the keys.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 the caller's number
-- RETURN  the number now
-- COST  O(1); 2 commands
local present = tonumber(call('GET', C .. 'format') or 1)
if present < tonumber(ARGV[2]) then
  call('SET', C .. 'format', ARGV[2])
  return tonumber(ARGV[2])
end
return present
