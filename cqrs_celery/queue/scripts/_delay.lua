-- Needs _common and _counts. Keep messages and sequences until they are due, and put the due ones in line.

local function delay(queue, pri, id, seq, due_ms)
  call('ZADD', C .. 'delayed:' .. queue, due_ms, pri .. '|' .. id .. '|' .. seq)
  -- Somebody must know when to come back: who waits for a wake-up learns it at its next take.
  if call('ZADD', C .. 'due', 'LT', 'CH', due_ms, queue) == 1 then wake(queue) end
end

local function refresh_due(queue)
  local first = call('ZRANGE', C .. 'delayed:' .. queue, 0, 0, 'WITHSCORES')
  if first[2] then call('ZADD', C .. 'due', first[2], queue) else call('ZREM', C .. 'due', queue) end
end

-- Move what is due to the head of its queue, earliest first; at most 100 of each of 10 queues.
local function promote(now)
  for _, queue in ipairs(call('ZRANGEBYSCORE', C .. 'due', '-inf', now, 'LIMIT', 0, 10)) do
    local delayed = C .. 'delayed:' .. queue
    local members = call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)
    if #members > 0 then call('ZREM', delayed, unpack(members)) end
    for i = #members, 1, -1 do
      local pri, id, seq = string.match(members[i], '^(%d+)|(%d*)|(.*)$')
      if id == '' then
        note_all(queue, seq)
        call('HSET', C .. 'seqs:' .. queue, seq, 'r' .. pri)
        push_ready(queue, pri, '=' .. seq, true)
      elseif seq == '' then
        push_ready(queue, pri, id, true)
      end
    end
    for i = 1, #members do
      local pri, id, seq = string.match(members[i], '^(%d+)|(%d*)|(.*)$')
      if id ~= '' and seq ~= '' then enqueue(id, queue, pri, seq) end
    end
    refresh_due(queue)
  end
end
