-- Try operations on one state of a queue, each from that state anew, in one round trip.
--
-- The scripts' own texts are put in place of the line that only says SCRIPTS, each as a function of its
-- KEYS and ARGV under its hash. Two commands of theirs are answered here: TIME by ARGV[1], PUBLISH by
-- the word that somebody has heard it.
--
-- ARGV  1 Redis's clock in ms   2 MessagePack of the state: {{key, type, what redis.call returned}…}
--       3 MessagePack of the operations: {{{hash of a script, or "" for a plain command; arguments}…}…}
--       or 2 MessagePack of a state to begin with, "" for the present one   3 MessagePack of a script's
--       arguments   4 its hash, "" for none
-- RETURN  MessagePack of, for each operation: {replies, channels that were published to, state after};
--         of one script: {MessagePack of the state after, its reply, channels that were published to}
local server = redis
local now, heard = tonumber(ARGV[1]), {}
local redis = setmetatable({}, {__index = server})

local function answered(name, channel)
  if name == 'TIME' then return {math.floor(now / 1000), (now % 1000) * 1000} end
  if name == 'PUBLISH' then
    heard[#heard + 1] = channel
    return 1
  end
end

function redis.call(name, ...)
  return answered(name, (...)) or server.call(name, ...)
end

function redis.pcall(name, ...)
  return answered(name, (...)) or server.pcall(name, ...)
end

local scripts = {}
SCRIPTS

local writers = {list = 'RPUSH', hash = 'HSET', set = 'SADD', string = 'SET'}

local function restore(state)
  server.call('FLUSHDB')
  for _, one in ipairs(state) do
    local key, kind, value = one[1], one[2], one[3]
    if kind == 'zset' then
      for i = 1, #value, 2 do server.call('ZADD', key, value[i + 1], value[i]) end
    elseif kind == 'string' then
      server.call('SET', key, value)
    else
      server.call(writers[kind], key, unpack(value))
    end
  end
end

local function dump()
  local state = {}
  for i, key in ipairs(server.call('KEYS', '*')) do
    local kind, value = server.call('TYPE', key).ok, nil
    if kind == 'zset' then value = server.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    elseif kind == 'list' then value = server.call('LRANGE', key, 0, -1)
    elseif kind == 'hash' then value = server.call('HGETALL', key)
    elseif kind == 'set' then value = server.call('SMEMBERS', key)
    else value = server.call('GET', key) end
    state[i] = {key, kind, value}
  end
  return state
end

local function run(hash, arguments)
  if hash == '' then return server.call(unpack(arguments)) end
  local is_done, reply = pcall(scripts[hash], {'cq:id'}, arguments)
  if not is_done then return {error = type(reply) == 'table' and reply.err or tostring(reply)} end
  -- The head of an exchange's answer is MessagePack itself.
  if type(reply) == 'table' and type(reply[1]) == 'string' and string.byte(reply[1]) >= 144
    and string.byte(reply[1]) < 160 then reply[1] = cmsgpack.unpack(reply[1]) end
  return reply
end

if ARGV[4] then
  if ARGV[2] ~= '' then restore(cmsgpack.unpack(ARGV[2])) end
  local script = scripts[ARGV[4]]
  local reply = script and script({'cq:id'}, cmsgpack.unpack(ARGV[3])) or false
  return {cmsgpack.pack(dump()), reply, heard}
end

local state, results = cmsgpack.unpack(ARGV[2]), {}
for i, calls in ipairs(cmsgpack.unpack(ARGV[3])) do
  restore(state)
  local replies = {}
  heard = {}
  for n, one in ipairs(calls) do replies[n] = run(one[1], one[2]) end
  results[i] = {replies, heard, dump()}
end
return cmsgpack.pack(results)
