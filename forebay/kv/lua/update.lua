-- Register or unregister blocks of one node.
--
-- KEYS[1]  nodes of this root
-- ARGV     node, epoch, 'add' or 'remove', time to live of the entries in ms, packed keys
-- Returns  1, or 0 if the index does not know this node and epoch (it was flushed): nothing is written then
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or string.match(known, '^(%S+) ') ~= ARGV[2] then return 0 end
local prefix = string.sub(KEYS[1], 1, -6) .. ARGV[1] .. ':' .. ARGV[2] .. ':'
local packed = ARGV[5]
for at = 1, #packed, 16 do
  local key = string.sub(packed, at, at + 15)
  local bucket = prefix .. (string.byte(key, 1) * 16 + math.floor(string.byte(key, 2) / 16))
  if ARGV[3] == 'add' then
    redis.call('HSET', bucket, key, '')
    redis.call('PEXPIRE', bucket, ARGV[4])
  else
    redis.call('HDEL', bucket, key)
  end
end
return 1
