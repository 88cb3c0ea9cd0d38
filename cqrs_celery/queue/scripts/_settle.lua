-- Needs _common. End deliveries: put back, forget; and free their sequences.

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
    local head = tonumber(id_of(call('LINDEX', key, -1) or ''))
    if not head or head > youngest then break end
    call('RPOP', key)
    line[#line + 1] = head
  end
  table.sort(line, function(a, b) return a > b end)
  call_with('RPUSH', key, line)
  if was_empty then wake(queue) end
end

-- The shared body that a stored payload needs, if any.
local function body_of(stored)
  return string.match(stored or '', '^@(%d+)\n')
end

-- True once a script has seen that no message may expire, and none was delivered before.
local has_no_history = false

-- Delete messages for good; of shared bodies, one use each, and with the last use the body.
local function forget(ids, body_ids)
  call_with('HDEL', C .. 'msg', ids)
  if not has_no_history then
    call_with('HDEL', C .. 'tries', ids)
    call_with('HDEL', C .. 'until', ids)
  end
  for _, body in ipairs(body_ids) do
    if call('HINCRBY', C .. 'refs', body, -1) <= 0 then
      call('HDEL', C .. 'refs', body)
      call('HDEL', C .. 'body', body)
    end
  end
end

local function held_state(state)
  return string.match(state or '', '^h(%d+)|(%d+)|(.*)$')
end

-- Let a sequence go on: its token to the queue, or no trace of it when nothing is left. Returns whether
-- anything is. The caller sees to the counts.
local function free_sequence(queue, seq, pri, at_head)
  if call('EXISTS', seq_key(queue, seq)) == 1 then
    call('HSET', C .. 'seqs:' .. queue, seq, 'r' .. pri)
    push_ready(queue, pri, '=' .. seq, at_head)
    return true
  end
  call('HDEL', C .. 'seqs:' .. queue, seq)
  return false
end
