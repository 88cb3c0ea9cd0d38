--!include _common _counts _delay
-- Store a message and put it in line on all its queues, once per publish id.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 publish id ("" for none)   3 ms to remember it   4 delay in ms (0: now)
--       5 ms for which it may wait, from when it is due (0: for ever; not for messages in a sequence);
--         with "?" behind it, the queues' own limits count too
--       6 shared body ("" when every payload is whole)
--       7… for each queue: queue, priority step, sequence ("" for none), payload (or head)
-- RETURN  the number of messages stored; 0 if this publish id was seen; with "?" {the number of messages
--         stored, 1 if one of the queues has a limit, else 0}
-- COST  O(queues); per queue 3 commands plain, 4 in a sequence, 6 more to wake somebody, 1 to expire, 1
--       behind another message of its sequence, 1 for the queue's limit
if ARGV[2] ~= '' and not call('SET', C .. 'dedup:' .. ARGV[2], 1, 'NX', 'PX', ARGV[3]) then
  return 0
end
local count = (#ARGV - 6) / 4
local last = call('INCRBY', C .. 'id', count)
local first = last - count + 1
local head
if ARGV[6] ~= '' then
  call('HSET', C .. 'body', first, ARGV[6])
  call('HSET', C .. 'refs', first, count)
  head = '@' .. first .. '\n'
end
local due = tonumber(ARGV[4]) > 0 and now_ms() + tonumber(ARGV[4])
local own, asks = string.match(ARGV[5], '^(%d+)(%??)$')
local has_limit = 0

-- When the message expires that waits in a queue: the sooner of its own limit and the queue's.
local function end_of(queue, seq)
  if seq ~= '' then return nil end
  local ms = tonumber(own)
  local limit = asks ~= '' and call('HGET', C .. 'ttl', queue)
  if limit then
    has_limit = 1
    ms = ms > 0 and math.min(ms, tonumber(limit)) or tonumber(limit)
  end
  return ms > 0 and (due or now_ms()) + ms
end

for i = 0, count - 1 do
  local id, at = tostring(first + i), 7 + i * 4
  local queue, pri, seq = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  call('HSET', C .. 'msg', id, head and head .. ARGV[at + 3] or whole(ARGV[at + 3]))
  local last_ms = end_of(queue, seq)
  if last_ms then call('HSET', C .. 'until', id, last_ms) end
  if due then delay(queue, pri, id, seq, due) else enqueue(id, queue, pri, seq) end
end
save_counts()
if asks ~= '' then return {count, has_limit} end
return count
