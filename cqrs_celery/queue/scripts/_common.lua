-- Shared by every script: names of keys, the ready lists, waking, and putting a message in line.
-- All keys begin with the prefix ARGV[1], so one hash tag in it keeps a virtual host in one slot.
-- KEYS[1] only routes the script to that slot.
--
-- <prefix><queue>[\6\22<step>]    LIST  what a free worker can take; head on the right. An element is
--                                       a message id, a sequence's token "=<sequence>", or a message
--                                       that a stock producer pushed there whole (anything else).
-- cq:msg       HASH id -> payload, or "@<body id>\n<head>" where several queues share a body, or
--                  "@\n<payload>" where the payload itself begins with "@"
-- cq:body      HASH body id -> body          cq:refs  HASH body id -> messages that still need it;
--                  "0<id>" -> 1 for a message that had a shared body and has a payload of its own now: as
--                  a body that isn't there, so that refs holds whatever is not done
-- cq:seq:<queue>\31<sequence>  LIST  every unsettled id of a sequence, in flight ones included
-- cq:seqs:<queue>  HASH sequence -> state: r<pri> its token is ready; h<pri>|<n>|<consumer> held, the
--                  first n ids in flight; l<pri> its head waits for its time; d<pri> its head is dead
-- cq:delayed:<queue>  ZSET "<pri>|<id>|<sequence>" -> due ms; without an id, a sequence's token
-- cq:due       ZSET queue -> earliest due ms of its delayed messages
-- cq:flight:<consumer>  HASH id -> "<fence>|<pri>|<body id>|<queue>\31<sequence>"; with "!" behind the
--                  body id where it has a dead letter, from which it was put in line again
-- cq:consumers ZSET consumer -> end of its lease, ms    cq:idle  SET consumers that wait for a wake-up
-- cq:consuming:<queue>  SET consumers                   cq:queues_of:<consumer>  SET queues
-- cq:about     HASH consumer -> JSON object: slots, batches, worker, host, pid
-- cq:until     HASH id -> ms at which a message expires that has not been taken
-- cq:expiring  ZSET queue -> ms at which an unused one expires    cq:lifetime  HASH queue -> its ms
-- cq:ttl       HASH queue -> ms that a message without a sequence may wait in it; absent for ever
-- cq:tries     HASH id -> deliveries that ended without a settlement
-- cq:dead:<queue>  HASH id -> letter    cq:policy, cq:redrive  see _letters
-- cq:dedup:<publish id>  STRING, expires                cq:prioritised  SET queues with steps above 0
-- cq:steps     SET of those steps
-- cq:id, cq:fence  counters             cq:queues  SET of declared queues
-- cq:paused    SET of queues from which nothing is taken; they need not be declared
-- A queue's name holds no \31; sequences and consumers may be called anything.
--
-- A full server refuses a script whose first write needs memory, and none after that. So publish
-- begins with one that does, to be refused whole, and whatever frees memory or keeps a lease begins
-- with one that does not, to go on.

local P = ARGV[1]
local C = P .. 'cq:'
local call = redis.call

local clock -- for one script, one time

local function now_ms()
  if not clock then
    local t = call('TIME')
    clock = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  end
  return clock
end

-- Call a command with any number of arguments after the key; Lua itself passes only some thousands.
local function call_with(command, key, arguments)
  if #arguments == 0 then return {} end
  if #arguments <= 1000 then return call(command, key, unpack(arguments)) end
  local replies = {}
  for i = 1, #arguments, 1000 do
    local reply = call(command, key, unpack(arguments, i, math.min(i + 999, #arguments)))
    if type(reply) == 'table' then
      for _, one in ipairs(reply) do replies[#replies + 1] = one end
    end
  end
  return replies
end

-- What kind of element of a ready list this is: a message's id, or a sequence, or neither.
local function id_of(element)
  return string.match(element, '^%d+$')
end

local function sequence_of(element)
  return string.match(element, '^=(.*)$')
end

-- Return a whole payload in the form in which cq:msg holds it.
local function whole(payload)
  if string.byte(payload) == 64 then return '@\n' .. payload end
  return payload
end

local function ready_key(queue, pri)
  if pri == '0' then return P .. queue end
  return P .. queue .. '\6\22' .. pri
end

local function seq_key(queue, seq)
  return C .. 'seq:' .. queue .. '\31' .. seq
end

local nobody_waits -- for a wake-up; looked up once, since no script makes somebody wait and then wakes

-- Wake one idle consumer of a queue; O(consumers) only where somebody is idle.
local function wake(queue)
  if nobody_waits == nil then nobody_waits = call('SCARD', C .. 'idle') == 0 end
  if nobody_waits then return end
  local who = call('SINTER', C .. 'idle', C .. 'consuming:' .. queue)[1]
  if who then
    call('SREM', C .. 'idle', who)
    call('PUBLISH', C .. 'wake:' .. who, queue)
  end
end

-- The priority steps of each queue, most urgent first: {"0"} unless another one was ever used there.
local function steps_in_use(queues)
  local all, result = {'0'}, {}
  for i, has_more in ipairs(call_with('SMISMEMBER', C .. 'prioritised', queues)) do
    if has_more == 1 and #all == 1 then
      for _, step in ipairs(call('SMEMBERS', C .. 'steps')) do all[#all + 1] = step end
      table.sort(all, function(a, b) return tonumber(a) < tonumber(b) end)
    end
    result[i] = has_more == 1 and all or {'0'}
  end
  return result
end

local function push_ready(queue, pri, element, at_head)
  if pri ~= '0' then
    call('SADD', C .. 'prioritised', queue)
    call('SADD', C .. 'steps', pri)
  end
  if call(at_head and 'RPUSH' or 'LPUSH', ready_key(queue, pri), element) == 1 then wake(queue) end
end

-- A stock producer says nowhere that it used a priority step: look for Kombu's own ones.
local function notice_steps(queues)
  for _, queue in ipairs(queues) do
    if call('EXISTS', ready_key(queue, '3'), ready_key(queue, '6'), ready_key(queue, '9')) > 0 then
      redis.pcall('SADD', C .. 'prioritised', queue)
      redis.pcall('SADD', C .. 'steps', '3', '6', '9')
    end
  end
end

-- Put a stored message in line: into its queue, or behind the others of its sequence.
local function enqueue(id, queue, pri, seq)
  if seq == '' then return push_ready(queue, pri, id) end
  call('LPUSH', seq_key(queue, seq), id)
  if call('HSETNX', C .. 'seqs:' .. queue, seq, 'r' .. pri) == 1 then
    push_ready(queue, pri, '=' .. seq)
  end
end
