--!include _common _counts _settle
-- Delete up to a number of messages of a queue that are not in flight and not dead.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 the most to delete in this call   4 "1": only of a queue that has expired,
--         and has no consumer; once nothing is left to delete, it is forgotten in the same step
-- RETURN  how many were deleted; call again while it is above 0; -1 if the queue has not expired
-- COST  O(deleted + sequences that are held or blocked)
local queue, most, must_be_expired = ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
if must_be_expired then
  -- Looked at in each call: between two of them somebody may consume it, or declare it anew.
  local at = call('ZSCORE', C .. 'expiring', queue)
  if not at or tonumber(at) >= now_ms() or call('SCARD', C .. 'consuming:' .. queue) > 0 then return -1 end
end
local ids = {}

local function take_sequence(seq)
  note_all(queue, seq)
  local key = seq_key(queue, seq)
  while #ids < most do
    local id = call('RPOP', key)
    if not id then break end
    ids[#ids + 1] = id
  end
  return call('EXISTS', key) == 0
end

-- Delete what stands in a sequence behind its messages in flight or its dead head.
local function take_behind(seq, kept)
  local key = seq_key(queue, seq)
  local last = math.min(most - #ids, call('LLEN', key) - kept) - 1
  if last < 0 then return end
  note_all(queue, seq)
  for _, id in ipairs(call('LRANGE', key, 0, last)) do ids[#ids + 1] = id end
  call('LTRIM', key, last + 1, -1)
end

local raw = 0
for _, pri in ipairs(steps_in_use({queue})[1]) do
  local key = ready_key(queue, pri)
  while #ids + raw < most do
    local element = call('LINDEX', key, -1)
    if not element then break end
    local seq = sequence_of(element)
    if seq then
      if not take_sequence(seq) then break end
      call('HDEL', C .. 'seqs:' .. queue, seq)
    elseif id_of(element) then
      ids[#ids + 1] = element
    else
      raw = raw + 1
    end
    call('RPOP', key)
  end
end
local delayed = C .. 'delayed:' .. queue
for _, member in ipairs(call('ZRANGE', delayed, 0, most - 1)) do
  if #ids + raw >= most then break end
  local id, seq = string.match(member, '^%d+|(%d*)|(.*)$')
  local is_done = true
  if id == '' then
    is_done = take_sequence(seq)
    if is_done then call('HDEL', C .. 'seqs:' .. queue, seq) end
  else
    ids[#ids + 1] = id
  end
  if is_done then call('ZREM', delayed, member) end
end
if call('EXISTS', delayed) == 0 then call('ZREM', C .. 'due', queue) end
local states = #ids + raw < most and call('HGETALL', C .. 'seqs:' .. queue) or {}
for i = 1, #states, 2 do
  local _, n = held_state(states[i + 1])
  if #ids + raw < most then take_behind(states[i], tonumber(n or 1)) end
end
local bodies = {}
-- A few at a time: however large they are, the server holds no more of them twice.
for i = 1, #ids, 50 do
  local payloads = call('HMGET', C .. 'msg', unpack(ids, i, math.min(i + 49, #ids)))
  for _, payload in ipairs(payloads) do bodies[#bodies + 1] = body_of(payload) end
end
forget(ids, bodies)
-- What was being tried again has a letter still.
if call('EXISTS', C .. 'dead:' .. queue) == 1 then call_with('HDEL', C .. 'dead:' .. queue, ids) end
save_counts()
if must_be_expired and #ids + raw == 0 then
  call('ZREM', C .. 'expiring', queue)
  call('HDEL', C .. 'lifetime', queue)
  call('HDEL', C .. 'ttl', queue)
  for _, set in ipairs({'queues', 'called', 'raw'}) do call('SREM', C .. set, queue) end
end
return #ids + raw
