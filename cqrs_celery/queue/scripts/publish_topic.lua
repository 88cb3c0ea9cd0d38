--!include _common _fanout
-- Give a message to every subscriber of its topic, once per publish id.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 publish id ("" for none)   3 ms to remember it   4 topic   5 body
--       6 message id   7 root id   8 parent id   9 sequence ("" for none)
-- RETURN  the number of queues it went to; -1 if this publish id was seen
-- COST  O(subscribers); 4 commands a subscriber and 4 more
if ARGV[2] ~= '' and not call('SET', C .. 'dedup:' .. ARGV[2], 1, 'NX', 'PX', ARGV[3]) then
  return -1
end
return fanout(ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
