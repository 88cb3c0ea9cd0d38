--!include _common
-- Register, or replace, a subscriber of topics: from now on it gets what is published there.
--
-- cq:topics_of:<subscriber>  SET topics
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 subscriber   3 queue   4 priority step   5–9 the five pieces of its head
--       10 its order: aggregate, subscription or none   11… topics; it is removed from all others
-- RETURN  the number of topics that are new to this subscriber
-- COST  O(topics before and now)
local packed = cmsgpack.pack({ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]})
local mine = C .. 'topics_of:' .. ARGV[2]
local new, wanted = 0, {}
call('SADD', C .. 'queues', ARGV[3])
for i = 11, #ARGV do
  wanted[ARGV[i]] = true
  call('SADD', mine, ARGV[i])
  new = new + call('HSET', C .. 'routes:' .. ARGV[i], ARGV[2], packed)
end
for _, topic in ipairs(call('SMEMBERS', mine)) do
  if not wanted[topic] then
    call('SREM', mine, topic)
    call('HDEL', C .. 'routes:' .. topic, ARGV[2])
  end
end
return new
