--!include _common
-- Pause queues: from this step on nothing is taken from them. What is published there is kept, in its
-- order, and what consumers hold is theirs to finish or to give back.
--
-- Their consumers are told by the channel that wakes them, with "\31paused" for a queue's name: they give
-- back what they have not begun. One that misses it learns it by its next take.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2… queues
-- RETURN  of each queue 1 if it was not paused before, else 0
-- COST  O(queues + their consumers)
local new = {}
for i = 2, #ARGV do new[i - 1] = call('SADD', C .. 'paused', ARGV[i]) end
for i = 2, #ARGV do
  for _, who in ipairs(call('SMEMBERS', C .. 'consuming:' .. ARGV[i])) do
    call('PUBLISH', C .. 'wake:' .. who, '\31paused')
  end
end
return new
