--!include _common _delay
-- Store a message and put it in line on all its queues, once per publish id.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 publish id ("" for none)   3 ms to remember it   4 delay in ms (0: now)
--       5 shared body ("" when every payload is whole)
--       6… for each queue: queue, priority step, sequence ("" for none), payload (or head)
-- RETURN  the number of messages stored; 0 if this publish id was seen
-- COST  O(queues); per queue 3 commands plain, 4 in a sequence, and 2 more to wake somebody
if ARGV[2] ~= '' and not call('SET', C .. 'dedup:' .. ARGV[2], 1, 'NX', 'PX', ARGV[3]) then
  return 0
end
local count = (#ARGV - 5) / 4
local last = call('INCRBY', C .. 'id', count)
local first = last - count + 1
local head
if ARGV[5] ~= '' then
  call('HSET', C .. 'body', first, ARGV[5])
  call('HSET', C .. 'refs', first, count)
  head = '@' .. first .. '\n'
end
local due = tonumber(ARGV[4]) > 0 and now_ms() + tonumber(ARGV[4])
for i = 0, count - 1 do
  local id, at = tostring(first + i), 6 + i * 4
  local queue, pri, seq = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  call('HSET', C .. 'msg', id, head and head .. ARGV[at + 3] or whole(ARGV[at + 3]))
  if due then delay(queue, pri, id, seq, due) else enqueue(id, queue, pri, seq) end
end
return count
