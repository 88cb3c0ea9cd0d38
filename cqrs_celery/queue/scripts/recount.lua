--!include _common _counts
-- Count anew what stands in a queue's sequences, a slice at a time; what others change meanwhile is told
-- by their scripts (see _counts), so the result is exact, unless a process of an older release is there.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 queue   3 about how many sequences to look at in this call
--       4 ms for which a count that can be relied on stays good; nothing is done where there is one
-- RETURN  {1 if it is done, 0 if it must be called again; by how much the counts were off, in messages
--         and sequences}
-- COST  O(looked at); 2 commands each. While it is under way, a SET holds the sequences seen, and each
--       change of a sequence costs 2 to 6 commands more
local queue, most = ARGV[2], tonumber(ARGV[3])
local counts, under_way = C .. 'counts:' .. queue, C .. 'recount:' .. queue

local function finish(found, at, offset)
  local off = 0
  for _, field in ipairs(FIELDS) do
    off = off + math.abs(found[field] - (tonumber(call('HGET', counts, field) or 0) - offset))
  end
  -- Without any there was nothing to be wrong.
  local is_known = call('HGET', counts, 'at')
  keep_counts(queue, found, at)
  return {1, is_known and off or 0}
end

local last = tonumber(call('HGET', counts, 'at') or 0)
local old_until = tonumber(call('GET', C .. 'old_until') or 0)
if last > math.max(old_until, now_ms() - tonumber(ARGV[4])) then return {1, 0} end
local cursor, at = unpack(call('HMGET', under_way, 'cursor', 'at'))
if not cursor then
  local length = call('HLEN', C .. 'seqs:' .. queue)
  if length == 0 and call('EXISTS', counts) == 0 then return {1, 0} end
  if length <= most then return finish(scan(queue), now_ms(), 0) end
  cursor, at = '0', string.format('%.0f', now_ms())
  call('HSET', under_way, 'at', at)
  for _, field in ipairs(FIELDS) do call('HINCRBY', counts, field, ANEW) end
elseif tonumber(at) <= old_until then
  -- Nobody would rely on it.
  call('DEL', under_way, C .. 'recounted:' .. queue)
  cursor, at = '0', string.format('%.0f', now_ms())
  call('HSET', under_way, 'at', at)
end
local reply = call('HSCAN', C .. 'seqs:' .. queue, cursor, 'COUNT', most)
local found = {}
for i = 1, #reply[2], 2 do
  local seq, state = reply[2][i], reply[2][i + 1]
  if call('SADD', C .. 'recounted:' .. queue, seq) == 1 then
    for field, n in pairs(part(state, call('LLEN', seq_key(queue, seq)))) do
      found[field] = (found[field] or 0) + n
    end
  end
end
for _, field in ipairs(FIELDS) do
  found[field] = call('HINCRBY', under_way, field, found[field] or 0)
end
if reply[1] == '0' then return finish(found, at, ANEW) end
call('HSET', under_way, 'cursor', reply[1])
return {0, 0}
