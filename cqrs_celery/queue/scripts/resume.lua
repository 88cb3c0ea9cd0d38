--!include _common
-- Let paused queues go on, and wake a consumer of each that has something to take.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2… queues
-- RETURN  of each queue 1 if it was paused, else 0
-- COST  O(queues)
local was, queues = {}, {}
for i = 2, #ARGV do
  queues[i - 1] = ARGV[i]
  was[i - 1] = call('SREM', C .. 'paused', ARGV[i])
end
for i, steps in ipairs(steps_in_use(queues)) do
  local is_ready = false
  for _, pri in ipairs(steps) do is_ready = is_ready or call('EXISTS', ready_key(queues[i], pri)) == 1 end
  if was[i] == 1 and is_ready then wake(queues[i]) end
end
return was
