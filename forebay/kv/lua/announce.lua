-- Heartbeat of one node under one root.
--
-- KEYS[1]  nodes of this root
-- ARGV     node, epoch, time to live of the node in ms, time to live of the entries in ms
-- Returns  1 if the node was known with this epoch, 0 if it was not (all its blocks must be registered again)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local nodes = redis.call('HGETALL', KEYS[1])
for i = 1, #nodes, 2 do
  local expires = tonumber(string.match(nodes[i + 1], ' (%d+)$') or '0')
  if expires + 10 * ARGV[3] < now then redis.call('HDEL', KEYS[1], nodes[i]) end
end
if known and string.match(known, '^(%S+) ') == ARGV[2] then return 1 end
return 0
