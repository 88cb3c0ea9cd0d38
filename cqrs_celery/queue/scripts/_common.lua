-- Shared by every script: names of keys, the ready lists, and waking.
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
-- cq:counts:<queue>, cq:old_until, cq:recount:<queue>, cq:recounted:<queue>  see _counts
-- cq:delayed:<queue>  ZSET "<pri>|<id>|<sequence>" -> due ms; without an id, a sequence's token
-- cq:due       ZSET queue -> earliest due ms of its delayed messages
-- cq:flight:<consumer>  HASH id -> "<fence>|<pri>|<body id>|<queue>\31<sequence>"; with "!" behind the
--                  body id where it has a dead letter, from which it was put in line again. What a consumer
--                  held that has ended is held by its remainder, "<consumer>+<number>"; see end_consumers
-- cq:consumers ZSET consumer -> end of its lease, ms    cq:idle  SET consumers that wait for a wake-up
-- cq:consuming:<queue>  SET consumers                   cq:queues_of:<consumer>  SET queues
-- cq:idle:<queue>  SET consumers of a queue: all that wait for a wake-up, and others that may
-- cq:callable  SET consumers that such sets are kept of: not those of the release that had none
-- cq:busy      SET consumers that a wake-up has found busy, and so taken out of a cq:idle:<queue>
-- cq:called    SET queues for which a consumer was woken, of which it isn't known whether it came
-- cq:raw       SET queues in which a message of a stock producer was found
-- cq:about     HASH consumer -> JSON object: slots, batches, worker, host, pid, lease_s, lock (the file of
--                  its process); of a remainder also remainder_of, the consumer that held it, and
--                  charged, see charge
-- cq:until     HASH id -> ms at which a message expires that has not been taken
-- cq:expiring  ZSET queue -> ms at which an unused one expires    cq:lifetime  HASH queue -> its ms
-- cq:ttl       HASH queue -> ms that a message without a sequence may wait in it; absent for ever
-- cq:tries     HASH id -> deliveries that ended without a settlement
-- cq:dead:<queue>  HASH id -> letter    cq:policy, cq:redrive  see _letters
-- cq:dedup:<publish id>  STRING, expires                cq:prioritised  SET queues with steps above 0
-- cq:steps     SET of those steps
-- cq:id, cq:fence  counters             cq:queues  SET of declared queues
-- cq:format    STRING number of the form of these keys; see upgrade     cq:upkeep  STRING see upkeep
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

local waiting -- how many consumers wait for a wake-up; no script makes somebody wait and then wakes

local function somebody_waits()
  waiting = waiting or call('SCARD', C .. 'idle')
  return waiting > 0
end

-- Wake a consumer, if it waits. False too where nobody listens for it: it has died, or connects anew.
local function reaches(who, queue)
  if call('SREM', C .. 'idle', who) == 0 then return false end
  waiting = waiting - 1
  return call('PUBLISH', C .. 'wake:' .. who, queue) > 0
end

-- Take consumers that were not reached out of the set of those that may wait for a queue. They are in it
-- again when they wait next, so that none costs two wake-ups.
local function unlist(queue, unreached)
  call_with('SREM', C .. 'idle:' .. queue, unreached)
  local busy, gone = {}, {}
  for i, known in ipairs(call_with('ZMSCORE', C .. 'consumers', unreached)) do
    table.insert(known and busy or gone, unreached[i])
  end
  call_with('SADD', C .. 'busy', busy)
  -- Recovered by a worker of the release before, which knows nothing of these sets.
  call_with('SREM', C .. 'callable', gone)
  call_with('SREM', C .. 'busy', gone)
end

-- Wake one of these consumers that waits; false if none is reached.
local function wake_one(found, queue)
  local unreached, is_reached = {}, false
  for i, waits in ipairs(call_with('SMISMEMBER', C .. 'idle', found)) do
    is_reached = waits == 1 and reaches(found[i], queue)
    if is_reached then break end
    unreached[i] = found[i]
  end
  if #unreached > 0 then unlist(queue, unreached) end
  return is_reached
end

-- Wake a consumer of the release that kept no cq:idle:<queue>; costs two commands where there is none.
local function wake_older(queue)
  if call('ZCARD', C .. 'consumers') <= call('SCARD', C .. 'callable') then return end
  for i, who in ipairs(call('SINTER', C .. 'idle', C .. 'consuming:' .. queue)) do
    if reaches(who, queue) or i == 64 then return end
  end
end

-- Wake one of the consumers of a queue that wait for it; the next one, if that one isn't reached.
--
-- O(1): at most 65 consumers are looked at, mostly one. cq:called has the queue until one has come: see
-- poll.lua.
local function wake(queue)
  if not somebody_waits() then return end
  local listed = C .. 'idle:' .. queue
  local first = call('SRANDMEMBER', listed)
  if first then
    call('SADD', C .. 'called', queue)
    if reaches(first, queue) then return end
    unlist(queue, {first})
    if waiting > 0 and wake_one(call('SRANDMEMBER', listed, 64), queue) then return end
  end
  if waiting > 0 then wake_older(queue) end
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

-- A stock producer says nowhere that it used a priority step: look for Kombu's own ones. True if a queue
-- has one of which nobody knew.
local function notice_steps(queues)
  local has_noticed = false
  for _, queue in ipairs(queues) do
    if call('EXISTS', ready_key(queue, '3'), ready_key(queue, '6'), ready_key(queue, '9')) > 0 then
      redis.pcall('SADD', C .. 'steps', '3', '6', '9')
      has_noticed = redis.pcall('SADD', C .. 'prioritised', queue) == 1 or has_noticed
    end
  end
  return has_noticed
end
