--!include _common _counts _fanout
-- Append events to their streams and give each to its subscribers, all or nothing.
--
-- A stream is a LIST of records, so its length is its version; the all-stream is a LIST of
-- "<stream>\31<version>", so its length is the global position. Nothing can leave a gap in either.
--
-- cq:stream:<application>:<aggregate type>:<id>  LIST records, oldest first
-- cq:all            LIST references, oldest first
-- cq:command:<id>   STRING "<first event id>\31<position>,<version>,…\31<outcome>", expires
-- cq:commit:<first event id>  the same, expires; only where a stream's version is not checked
--
-- KEYS  1 routing key
-- ARGV  1 prefix   2 command id ("" for none)   3 ms to remember it   4 its outcome, JSON
--       5 consumer whose lease must hold ("" for none)   6 its message   7 its fence
--       8 head and 9 tail of a body   10 root id and 11 parent id, as they stand inside JSON strings
--       12… for each stream: its key, its key as JSON, expected version (-1: any), number of events
--           (0: only the version is checked), and for each event: topic, event id, record without "{"
-- RETURN  {"ok", last position, versions…}
--         {"version", index of the stream from 1, its version}
--         {"command", position, outcome}   the command committed before
--         {"lease"}
-- COST  per stream 1 command, per event 7, per subscriber 3; 1 for a lease, 2 for a command
local streams, has_any = {}, false

local at = 12
while at <= #ARGV do
  local s = {key = C .. 'stream:' .. ARGV[at], name = ARGV[at], json = ARGV[at + 1],
             expected = tonumber(ARGV[at + 2]), count = tonumber(ARGV[at + 3]), at = at + 4}
  streams[#streams + 1] = s
  has_any = has_any or s.expected < 0
  at = s.at + s.count * 3
end
local commit_id
for i = #streams, 1, -1 do
  if streams[i].count > 0 then commit_id = ARGV[streams[i].at + 1] end
end

-- The reply to a commit may be lost and the commit repeated: then its own events are there already.
local function is_ours()
  for _, s in ipairs(streams) do
    if s.count > 0 and s.expected >= 0 then
      local record = call('LINDEX', s.key, s.expected)
      return record and string.find(record, '"event_id":"' .. ARGV[s.at + 1] .. '"', 1, true)
    end
  end
end

local function repeated()
  local answer = {'ok', 0}
  for _, s in ipairs(streams) do
    answer[#answer + 1] = s.expected + s.count
    if s.count > 0 then
      local record = call('LINDEX', s.key, s.expected + s.count - 1)
      answer[2] = tonumber(string.match(record, '^{"position":(%d+)'))
    end
  end
  return answer
end

local memory_key = ARGV[2] ~= '' and C .. 'command:' .. ARGV[2] or has_any and C .. 'commit:' .. commit_id
if memory_key then
  local first, numbers, outcome = string.match(call('GET', memory_key) or '', '^([^\31]*)\31([^\31]*)\31(.*)$')
  if first == commit_id then
    local answer = {'ok'}
    for number in string.gmatch(numbers, '%d+') do answer[#answer + 1] = tonumber(number) end
    return answer
  end
  if first then return {'command', tonumber(string.match(numbers, '^%d+')), outcome} end
end

local is_held = true
if ARGV[5] ~= '' then
  local flight = call('HGET', C .. 'flight:' .. ARGV[5], ARGV[6])
  is_held = flight and string.match(flight, '^%d+') == ARGV[7]
end
for i, s in ipairs(streams) do
  s.version = call('LLEN', s.key)
  if s.expected >= 0 and s.version ~= s.expected then
    if is_ours() then return repeated() end
    return is_held and {'version', i, s.version} or {'lease'}
  end
end
if not is_held then return {'lease'} end

local position
local answer = {'ok', 0}
for _, s in ipairs(streams) do
  for i = 0, s.count - 1 do
    local topic, event_id, record = ARGV[s.at + i * 3], ARGV[s.at + i * 3 + 1], ARGV[s.at + i * 3 + 2]
    s.version = s.version + 1
    position = call('RPUSH', C .. 'all', s.name .. '\31' .. s.version)
    local numbers = '"position":' .. position .. ',"version":' .. s.version .. ','
    call('RPUSH', s.key, '{' .. numbers .. record)
    fanout(topic, table.concat({ARGV[8], '{"stream":', s.json, ',', numbers, record, ARGV[9]}),
      event_id, ARGV[10], ARGV[11], s.name)
  end
  answer[#answer + 1] = s.version
end
save_counts()
answer[2] = position
if memory_key then
  local ttl_ms = ARGV[2] ~= '' and ARGV[3] or 600000
  call('SET', memory_key, table.concat({commit_id, table.concat(answer, ',', 2), ARGV[4]}, '\31'), 'PX', ttl_ms)
end
return answer
