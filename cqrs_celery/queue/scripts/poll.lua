--!include _common
-- Find out for an idle consumer whether there is anything to take, whatever became of its wake-ups.
--
-- There may be if it was woken, which it doesn't know of if this is asked; if anything delayed is due; if
-- something is left in a queue for which another one was woken; and in a queue that stock producers use,
-- who wake nobody.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer
-- RETURN  {1 if there may be, else 0; how many of cq:due and cq:called exist}
-- COST  O(1) in queues, consumers and messages: 6 commands; 2 more for each queue of the consumer for which
--       somebody was woken since it was last looked at, and for up to 100 that stock producers use
local consumer = ARGV[2]
local mine = C .. 'queues_of:' .. consumer
local marks = call('EXISTS', C .. 'due', C .. 'called')

local function is_ready(queue, steps)
  for _, pri in ipairs(steps) do
    if call('EXISTS', ready_key(queue, pri)) == 1 then return true end
  end
  return false
end

local function is_due()
  local first = call('ZRANGE', C .. 'due', 0, 0, 'WITHSCORES')[2]
  return first and tonumber(first) <= now_ms()
end

-- Whether a queue has something for which somebody was woken, who may never have come.
local function is_called()
  local queues = call('SINTER', C .. 'called', mine)
  local steps = steps_in_use(queues)
  for i, queue in ipairs(queues) do
    if is_ready(queue, steps[i]) then return true end
    call('SREM', C .. 'called', queue)
  end
  return false
end

local function has_raw()
  local queues = call('SINTER', C .. 'raw', mine)
  local first = #queues > 100 and now_ms() or 0
  for i = first, first + math.min(#queues, 100) - 1 do
    if is_ready(queues[i % #queues + 1], {'0', '3', '6', '9'}) then return true end
  end
  return false
end

local is_idle = call('SISMEMBER', C .. 'idle', consumer) == 1
return {(not is_idle or is_due() or is_called() or has_raw()) and 1 or 0, marks}
