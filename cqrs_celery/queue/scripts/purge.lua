--!include _common _settle
-- Delete up to a number of messages of a queue that are not in flight and not dead.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 the most to delete in this call
-- RETURN  how many were deleted; call again while it is not 0
-- COST  O(deleted)
local queue, most = ARGV[2], tonumber(ARGV[3])
local ids = {}

local function take_sequence(seq)
  local key = seq_key(queue, seq)
  local n = 0
  while #ids < most do
    local id = call('RPOP', key)
    if not id then break end
    ids[#ids + 1] = id
    n = n + 1
  end
  return call('EXISTS', key) == 0
end

local raw = 0
for _, pri in ipairs(steps_in_use({queue})[1]) do
  local key = ready_key(queue, pri)
  while #ids + raw < most do
    local element = call('LINDEX', key, -1)
    if not element then break end
    local first = string.byte(element)
    if first == 61 then
      if not take_sequence(string.sub(element, 2)) then break end
      call('HDEL', C .. 'seqs:' .. queue, string.sub(element, 2))
    elseif first == 123 then
      raw = raw + 1
    else
      ids[#ids + 1] = element
    end
    call('RPOP', key)
  end
end
local delayed = C .. 'delayed:' .. queue
for _, member in ipairs(call('ZRANGE', delayed, 0, -1)) do
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
for i = 1, #ids, 1000 do
  local some, shared = {unpack(ids, i, math.min(i + 999, #ids))}, {}
  for _, payload in ipairs(call('HMGET', C .. 'msg', unpack(some))) do
    local body = string.match(payload or '', '^@(%d+)\n')
    if body then shared[#shared + 1] = body end
  end
  forget(some, shared)
end
return #ids + raw
