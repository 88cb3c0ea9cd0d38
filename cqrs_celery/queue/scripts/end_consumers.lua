--!include _common
-- End consumers: each is forgotten, and what it holds passes whole to a remainder, which is a consumer
-- that nobody is. Recovery gives its messages back in slices. A remainder has a lease too: if that ends,
-- the recovery was broken off, and whoever finds it goes on.
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 lease of the remainders in ms   3 "1" if the consumers leave: nothing that they hold
--       counts a delivery; then, for each consumer: its name, the end of its lease in ms as it was seen;
--       "" for any
-- RETURN  {consumer, its remainder or "" where it holds nothing, what is known of it, …} three entries for
--         each that was ended; one whose lease was renewed meanwhile is left out
-- COST  12 commands and O(queues consumed) a consumer; what it holds costs nothing
local lease_ms, is_leaving = tonumber(ARGV[2]), ARGV[3] == '1'
local result = {}

local function deregister(consumer)
  call('ZREM', C .. 'consumers', consumer)
  for _, set in ipairs({'idle', 'callable', 'busy'}) do call('SREM', C .. set, consumer) end
  for _, queue in ipairs(call('SMEMBERS', C .. 'queues_of:' .. consumer)) do
    call('SREM', C .. 'consuming:' .. queue, consumer)
    call('SREM', C .. 'idle:' .. queue, consumer)
  end
  call('DEL', C .. 'queues_of:' .. consumer)
  call('HDEL', C .. 'about', consumer)
end

local function about(consumer)
  local is_json, known = pcall(cjson.decode, call('HGET', C .. 'about', consumer) or '{}')
  return is_json and type(known) == 'table' and known or {}
end

-- Pass on what a consumer holds; what is left of an earlier recovery keeps its name.
local function pass_on(consumer, known)
  local flight = C .. 'flight:' .. consumer
  if call('EXISTS', flight) == 0 then return '' end
  local name = consumer
  if not known.remainder_of then
    name = consumer .. '+' .. string.format('%.0f', call('INCRBY', C .. 'fence', 2))
    call('RENAME', flight, C .. 'flight:' .. name)
    known.remainder_of = consumer
  end
  call('ZADD', C .. 'consumers', now_ms() + lease_ms, name)
  return name
end

for i = 4, #ARGV, 2 do
  local consumer, seen = ARGV[i], ARGV[i + 1]
  local lease_end = call('ZSCORE', C .. 'consumers', consumer)
  if seen == '' or (lease_end and tonumber(lease_end) == tonumber(seen)) then
    local known = about(consumer)
    deregister(consumer)
    local remainder = pass_on(consumer, known)
    if is_leaving then known.charged = '' end
    local is_text, text = pcall(cjson.encode, known)
    text = is_text and text or '{}'
    if remainder ~= '' then call('HSET', C .. 'about', remainder, text) end
    result[#result + 1] = known.remainder_of or consumer
    result[#result + 1] = remainder
    result[#result + 1] = text
  end
end
return result
