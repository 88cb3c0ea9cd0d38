-- Needs _common, _counts and _settle. Dead letters: set a message aside, try it again, let it go.
--
-- A letter is "<pri>\31<died ms>\31<tries>\31<first died ms>\31<times died>\31<state>\31<sequence>\31<why>";
-- why is JSON made by the caller, so without a bare \31, which a sequence's name may have. Its state is
-- d dead, t being tried again, or a archived: its time is over, and only somebody's order moves it. It
-- stays until its message is done or deleted. While it is tried again, the message's count of tries
-- begins at LETTER, so that a take sees with the same look that there is a letter.
--
-- cq:policy   HASH queue -> "<block|continue|discard>|<first ms>|<most ms>|<life ms>|<limit>": what
--             a letter does to its sequence, ms to its first redrive, the most between two, its time to
--             live, and how many may wait behind it without alarm. A queue without one: continue, never
--             by itself.
-- cq:redrive  ZSET "<queue>\31<id>" -> ms at which a letter is looked after

local LETTER = 1000000
local ALARM_MS = 3600000

local policies = {}

local function policy_of(queue)
  if policies[queue] == nil then
    local kind, first, most, life, limit = string.match(
      call('HGET', C .. 'policy', queue) or '', '^(%a+)|(%d+)|(%d+)|(%d+)|(%d+)$')
    policies[queue] = kind and {kind = kind, first = tonumber(first), most = tonumber(most),
      life = tonumber(life), limit = tonumber(limit)} or false
  end
  return policies[queue]
end

local function blocks(queue)
  local policy = policy_of(queue)
  return policy and policy.kind ~= 'continue'
end

local function letter_of(queue, id)
  local text = call('HGET', C .. 'dead:' .. queue, id)
  if not text then return nil end
  local pri, died, tries, first, times, state, seq, why = string.match(
    text, '^(%d+)\31(%d+)\31(%d+)\31(%d+)\31(%d+)\31(%a)\31(.*)\31([^\31]*)$')
  return {pri = pri, died = tonumber(died), tries = tries, first = tonumber(first),
    times = tonumber(times), state = state, seq = seq, why = why}
end

local function write_letter(queue, id, l)
  call('HSET', C .. 'dead:' .. queue, id, table.concat({l.pri, string.format('%.0f', l.died), l.tries,
    string.format('%.0f', l.first), l.times, l.state, l.seq, l.why}, '\31'))
end

local function look_after(queue, id, at_ms)
  call('ZADD', C .. 'redrive', string.format('%.0f', at_ms), queue .. '\31' .. id)
end

local function bury(id, queue, pri, seq, now, tries, why)
  local old = letter_of(queue, id)
  local l = {pri = pri, died = now, tries = tonumber(tries) % LETTER, first = old and old.first or now,
    times = (old and old.times or 0) + 1, state = 'd', seq = seq, why = why}
  write_letter(queue, id, l)
  local policy = policy_of(queue)
  if policy then
    local wait = math.min(policy.first * 2 ^ math.min(l.times - 1, 40), policy.most)
    look_after(queue, id, math.max(now, math.min(now + wait, l.first + policy.life)))
  end
end

-- Whether the letter is what its sequence waits for.
local function holds_up(queue, id, l)
  return l.seq ~= '' and call('HGET', C .. 'seqs:' .. queue, l.seq) == 'd' .. l.pri
    and call('LINDEX', seq_key(queue, l.seq), -1) == id
end

-- How many wait behind the letter.
local function behind(queue, id, l)
  return holds_up(queue, id, l) and call('LLEN', seq_key(queue, l.seq)) - 1 or 0
end

-- Put the message back in line: a sequence that it holds up goes on from it; any other has gone on
-- without it, and gets it at its end.
local function try_again(queue, id, l)
  if l.seq ~= '' then note_all(queue, l.seq) end
  local is_head = holds_up(queue, id, l)
  call('ZREM', C .. 'redrive', queue .. '\31' .. id)
  l.state = 't'
  write_letter(queue, id, l)
  call('HSET', C .. 'tries', id, LETTER)
  call('HDEL', C .. 'until', id)
  if is_head then free_sequence(queue, l.seq, l.pri, true) else enqueue(id, queue, l.pri, l.seq) end
end

-- Delete letter and message for good; a sequence that it held up goes on with the message behind it.
local function let_go(queue, id, l)
  if l.seq ~= '' then note_all(queue, l.seq) end
  local is_head = holds_up(queue, id, l)
  call('HDEL', C .. 'dead:' .. queue, id)
  call('ZREM', C .. 'redrive', queue .. '\31' .. id)
  if is_head then
    call('RPOP', seq_key(queue, l.seq))
    free_sequence(queue, l.seq, l.pri, true)
  end
  forget({id}, {body_of(call('HGET', C .. 'msg', id))})
end
