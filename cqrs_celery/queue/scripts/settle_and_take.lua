--!include _common _counts _delay _settle _letters _settle_operations _take
-- Settle what a consumer has finished, then take what is next for it, in one round trip.
--
-- An operation counts only if the consumer still holds that delivery: same id, same fence.
--   a<id>.<fence>.0     ack: the message is done
--   n<id>.<fence>.0     give back unstarted: to its place, not counted as a delivery
--   r<id>.<fence>.0     put back after a start: to its place, counted
--   l<id>.<fence>.<ms>  deliver again after a delay; its text replaces the payload and the shared body,
--                       "" keeps them; in a sequence everything behind it waits
--   d<id>.<fence>.0     dead letter, its text says why; in a queue whose letters block, its sequence
--                       stops here
-- Putting back, delaying or blocking a message of a sequence takes the later ones that the consumer
-- holds of it back too, so that none can overtake it. While one ahead of it is still held after all
-- operations, it only returns to its place.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 consumer   3 operations, one after the other   4 how many deliveries to take (0:
--       only settle), of a sequence only the first message counts   5 how many messages of one sequence
--       6 "1" if the consumer had gone idle   7 the most messages to take in batches   8 number of queues
--       9… for each queue to take from, in the order of their turn: its name, how many messages one
--       delivery of it holds (1, or the size of a batch); then the texts of the operations that have
--       one, in their order
-- RETURN  {MessagePack of {1 if the consumer is known else 0, ids whose settlement counted nothing, ids
--          taken back, ms until something delayed is due (-1: nothing), the take's number, how many of
--          the messages are not behind another one of their sequence; these come first,
--          {{id, queue, sequence, priority step, tries, 1 if it has a shared body else 0}…}, all
--          paused queues}, of which nothing was taken; then of each: payload or head, and the shared body if it has one}
--         in one piece, since a client parses that in a third of the time
--         The fence of message i, from 0, is the take's number + 2 i, and one more behind another
--         message of its sequence
--         Less than was asked for where it would be more than 16 MiB: the rest is ready still
-- COST  9 commands for plain messages, 10 for more than 16; 1–5 per other settlement, 1–4 per message of a
--       sequence, 1 or 2 per queue with such as stand behind others; 8 more where anything is delayed,
--       expires, was delivered before, or has a priority; 2 more to go idle (1 a queue of the consumer's,
--       if a wake-up found it busy), 2 to be so no more; 1 more while a queue is paused, O(paused queues)
local consumer, operations, wanted, run = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local was_idle, most, last_queue = ARGV[6] == '1', tonumber(ARGV[7]), 8 + 2 * tonumber(ARGV[8])
local flight = C .. 'flight:' .. consumer

-- One command says that nothing is there that most of the others would look for, and whether a queue is
-- paused: EXISTS counts that key as often as it is named, and so once more than all others.
local PAUSED = C .. 'paused'
local found = call('EXISTS',
  C .. 'until', C .. 'tries', C .. 'due', C .. 'idle', C .. 'prioritised',
  PAUSED, PAUSED, PAUSED, PAUSED, PAUSED, PAUSED)
has_no_history = found % 6 == 0
local paused = found >= 6 and call('SMEMBERS', PAUSED) or {}

local refused, revoked = settle_operations(consumer, flight, operations, last_queue)
-- Settling may have left some of it behind.
local is_plain = has_no_history

local is_known = call('ZSCORE', C .. 'consumers', consumer)
if wanted == 0 or not is_known then
  save_counts()
  return {cmsgpack.pack({is_known and 1 or 0, refused, revoked, -1, 0, 0, {}, paused})}
end

-- ms until the first of what is delayed is due; -1 if nothing is.
local function until_due()
  local first = not is_plain and call('ZRANGE', C .. 'due', 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, math.ceil(tonumber(first) - now_ms())) or -1
end

local due_in = until_due()
if due_in == 0 then
  promote(now_ms())
  due_in = until_due()
end

local queues, sizes = queues_of(9, last_queue, paused)
local steps = is_plain and {} or steps_in_use(queues)
local turn = take_in_turn(queues, sizes, steps, wanted, most)
take_runs(turn, run, most)
local looked_at = #taken
if not is_plain then drop_expired() end
local messages, returned = #ids > 0 and read_taken() or {}, {}
if #messages < #ids then returned = return_from(#messages + 1) end
-- What has been taken in its time comes again however late: a retry, or from a worker that died.
if not is_plain then call_with('HDEL', C .. 'until', ids) end
hold_sequences(consumer)
-- All of it was too late: more of that may stand before what is not.
if looked_at > 0 and #ids == 0 then due_in = 0 end

local pieces, take = {''}, 0
if #ids > 0 then
  local tries = is_plain and {} or call_with('HMGET', C .. 'tries', ids)
  take = note_deliveries(flight, messages, tries, pieces)
  if was_idle then
    call('SREM', C .. 'idle', consumer)
    call_with('SREM', C .. 'called', turn.emptied)
  end
  if not is_plain and (turn.used >= wanted or turn.in_batches >= most) and somebody_waits() then
    pass_on(queues, steps, turn.drained)
  elseif not is_plain then
    for queue in pairs(returned) do wake(queue) end
  end
elseif looked_at == 0 then
  go_idle(consumer)
  -- What stands there is for the next take, at once.
  if was_idle and notice_steps(queues) then due_in = 0 end
end
save_counts()
pieces[1] = cmsgpack.pack({1, refused, revoked, due_in, take, firsts, taken, paused})
return pieces
