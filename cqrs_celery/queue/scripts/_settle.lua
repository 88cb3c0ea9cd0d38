-- Needs _common. End deliveries: put back, set aside as dead, forget; and free their sequences.

-- Put plain ids back at the head of a queue, each before the first younger id that stands there.
local function put_back(queue, pri, ids)
  local key = ready_key(queue, pri)
  local was_empty = call('EXISTS', key) == 0
  local line, youngest = {}, 0
  for i, id in ipairs(ids) do
    line[i] = tonumber(id)
    youngest = math.max(youngest, line[i])
  end
  for _ = 1, 1000 do
    local head = tonumber(call('LINDEX', key, -1))
    if not head or head > youngest then break end
    call('RPOP', key)
    line[#line + 1] = head
  end
  table.sort(line, function(a, b) return a > b end)
  for i = 1, #line, 1000 do call('RPUSH', key, unpack(line, i, math.min(i + 999, #line))) end
  if was_empty then wake(queue) end
end

-- Delete messages for good, and each shared body with the last message that needs it.
local function forget(ids, body_ids)
  if #ids == 0 then return end
  call('HDEL', C .. 'msg', unpack(ids))
  call('HDEL', C .. 'tries', unpack(ids))
  for _, body in ipairs(body_ids) do
    if call('HINCRBY', C .. 'refs', body, -1) <= 0 then
      call('HDEL', C .. 'refs', body)
      call('HDEL', C .. 'body', body)
    end
  end
end

-- A letter keeps where the message stood, when it died, and why (JSON made by the caller).
local function bury(id, queue, pri, seq, now, tries, why)
  call('HSET', C .. 'dead:' .. queue, id,
    table.concat({pri, string.format('%.0f', now), tries, seq, why}, '\31'))
end

local function held_state(state)
  return string.match(state or '', '^h(%d+)|(%d+)|(.*)$')
end

-- Let a sequence go on: its token to the queue, or no trace of it when nothing is left.
local function free_sequence(queue, seq, pri, at_head)
  if call('EXISTS', seq_key(queue, seq)) == 1 then
    call('HSET', C .. 'seqs:' .. queue, seq, 'r' .. pri)
    push_ready(queue, pri, '=' .. seq, at_head)
  else
    call('HDEL', C .. 'seqs:' .. queue, seq)
  end
end
