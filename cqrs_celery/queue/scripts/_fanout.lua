-- Needs _common and _counts. Give one body to every subscriber of a topic; save_counts() must follow.
--
-- cq:routes:<topic>  HASH subscriber -> cmsgpack {queue, priority step, A, B, C, D, E, order}: a head is
-- the pieces A to E with the message id, the message id, the root id and the parent id between them;
-- the order is aggregate (what is published as one sequence stays one), subscription (all of the
-- queue is one, called "*"), or none.

local routes_of = {}
local one_sequence = {subscription = '*', none = ''}

local function fanout(topic, body, message_id, root, parent, seq)
  local routes = routes_of[topic]
  if not routes then
    routes = {}
    for i, packed in ipairs(call('HVALS', C .. 'routes:' .. topic)) do routes[i] = cmsgpack.unpack(packed) end
    routes_of[topic] = routes
  end
  local count = #routes
  if count == 0 then return 0 end
  local first = call('INCRBY', C .. 'id', count) - count + 1
  call('HSET', C .. 'body', first, body)
  call('HSET', C .. 'refs', first, count)
  local mark, messages = '@' .. first .. '\n', {}
  for i, r in ipairs(routes) do
    messages[2 * i - 1] = tostring(first + i - 1)
    messages[2 * i] = table.concat(
      {mark, r[3], message_id, r[4], message_id, r[5], root, r[6], parent, r[7]})
  end
  call_with('HSET', C .. 'msg', messages)
  for i, r in ipairs(routes) do
    enqueue(messages[2 * i - 1], r[1], r[2], one_sequence[r[8]] or seq)
  end
  return count
end
