--- A handler with every callback there is. Copy it, keep what you need: each one may be left out.
-- The file is run once in each generation of handlers (at the start and at each reload); it returns the class of the connections.
-- A connection's callbacks never run at the same time as any others: nothing needs a lock, and nothing may take long.

local em = require "em"

local Skeleton = em.Connection:extend()

local connections = 0 -- locals of the file are shared by all connections

--- First of all, with the `args` of the listen or connect block. Data may be sent already.
function Skeleton:initialize(greeting)
  self.greeting = greeting or "hello" -- fields of self are this connection's own
  connections = connections + 1
end

--- Right after. An accepted connection is open; an outgoing one is still on its way, what is sent now leaves when it is there.
function Skeleton:post_init()
  self:send_data(self.greeting, "\n")
end

--- An outgoing connection has succeeded. Not called for accepted ones.
function Skeleton:connection_completed()
  local host, port = self:get_peername()
  em.log.info("connected to %s %s", host, port or "")
end

--- TLS is up, on a tls:// address or after start_tls. What was sent before this has waited and goes now, encrypted.
function Skeleton:ssl_handshake_completed()
  em.log.info("%s, %s", self:get_cipher_protocol(), self:get_cipher_name())
end

--- Under verify_peer, for each certificate of the peer's chain: PEM text, what OpenSSL makes of it, 0 for the peer's own, and the reason
-- in words. True accepts, all else refuses. Without this method OpenSSL's verdict stands, which is what most handlers want.
function Skeleton:ssl_verify_peer(_, preverified, depth, reason)
  if not preverified then
    em.log.warn("certificate %d of the chain: %s", depth, reason)
  end
  return preverified
end

--- Bytes have come, in order, but cut in any way: half a word, or many lines at once. Without this method coroutines (em.go) may read
-- them: self:read(n), self:read_line(), self:read_all().
function Skeleton:receive_data(data)
  -- True: queued. False: queued, but the peer reads more slowly than we write: better send no more until drained. nil, message, code:
  -- not queued, the connection is closing.
  self.full = self:send_data(data) == false
end

--- Of a child process only (em.popen with stderr = "separate"): it has written to its standard error.
function Skeleton:receive_stderr(data)
  em.log.warn("child %d: %s", self:get_pid(), data)
end

--- What was queued has gone, after a send_data that returned false.
function Skeleton:drained()
  self.full = false
end

--- The peer will send no more, but may still listen. Without this method the connection ends here by itself, after writing.
function Skeleton:receive_eof()
  self:close_connection_after_writing()
end

--- The connection that our bytes are relayed to (proxy_incoming_to) has ended; what comes in from now on comes to receive_data.
function Skeleton:proxy_target_unbound()
  self:close_connection_after_writing()
end

--- As many bytes as proxy_incoming_to was given have been relayed; the rest comes to receive_data.
function Skeleton:proxy_completed()
  em.log.info("%d bytes relayed", self:get_proxied_bytes())
end

--- Of em.watch only: the descriptor is ready, again in each turn. The same names with true or false say which of the two are wanted.
function Skeleton:notify_readable()
  self:notify_readable(false)
end

function Skeleton:notify_writable()
  self:notify_writable(false)
end

--- Of em.watch_file only: the bytes have changed, or in a folder the entry `name`; the file has another name; it is gone.
function Skeleton:file_modified(name)
  em.log.info("%s has changed: %s", self.path, name or "itself")
end

function Skeleton:file_moved()
  em.log.info("%s has moved", self.path)
end

function Skeleton:file_deleted()
  em.log.info("%s is gone", self.path)
end

--- Of em.watch_process only. status is { exited = n } or { signaled = n }, and nil where the process is no child of ours.
function Skeleton:process_exited(status)
  em.log.info("process %d has ended with %s", self.pid, status and (status.exited or status.signaled) or "?")
end

--- On a datagram socket: a datagram to that host and port did not go or did not arrive. The socket stays open.
function Skeleton:send_error(message, code, host, port)
  em.log.info("nothing goes to %s %d: %s (%s)", host, port, message, code)
end

--- On a named channel that self:subscribe(name) has named: what somebody in the daemon has pushed, plain data. All who hear of it here
-- get the same table: do not change it.
function Skeleton:receive_message(name, data)
  em.log.info("%s: %s", name, data)
end

--- A reload: what does the new code have to know of this connection? The answer is plain data, and goes to the new code's takeover. It
-- describes and changes nothing: if the hand-over fails, the connection stays here.
function Skeleton:handover()
  return { greeting = self.greeting, full = self.full }
end

--- In the place of initialize and post_init, for a connection that older code has handed over. Nothing of it was lost but its timers.
function Skeleton:takeover(state)
  self.greeting = state.greeting
  self.full = state.full
  connections = connections + 1
end

--- The end: exactly once, last, in the code that has the connection then. err is nil when all is well, else a code such as "ECONNRESET";
-- why says it in words.
function Skeleton:unbind(err, why)
  connections = connections - 1
  if err then
    em.log.info("connection ended by %s: %s; %d left", err, why, connections)
  end
end

return Skeleton
