-- Append events to their streams, all or none: one statement, so that a commit is one round trip.
--
-- ARGUMENTS  order_of_locks: the streams' indexes, sorted by key, so that appends never deadlock
--            keys … counts: for each stream
--            events: [{stream: index from 1, after: its place behind the stream's version, …}]
--            command (NULL for none), its outcome, seconds to remember it
-- RETURNS    {position of the last event, version of each stream}
-- ERRORS     CQ001 "<index of a stream>,<its version>"   it is at another version
--            CQ002                                       the command has committed before
--            23505                                       an event is there already
-- LOCKS      the row of each stream; and, shared, a number that stands for the events' table: by
--            its holders a reader knows who may still fill a gap that it sees. It is taken before
--            the first position is.
-- COST       a statement a stream and one for all events; 2 for a command
CREATE FUNCTION cqrs_append_v1(
  order_of_locks integer[],
  keys text[], applications text[], aggregate_types text[], aggregate_ids text[],
  expected bigint[], counts integer[], events jsonb,
  command text, command_outcome text, command_ttl_s bigint
) RETURNS bigint[] LANGUAGE plpgsql AS $cqrs$
DECLARE
  ids bigint[] := array_fill(0::bigint, ARRAY[cardinality(keys)]);
  before bigint[] := ids;
  answer bigint[] := ids;
  i integer;
  id bigint;
  found_version bigint;
  last_position bigint;
BEGIN
  PERFORM pg_advisory_xact_lock_shared(
    (1668444019::bigint << 32) | 'cqrs_events'::regclass::oid::bigint);
  IF command IS NOT NULL THEN
    PERFORM FROM cqrs_commands c WHERE c.command_id = command AND c.expires_at > now();
    IF FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
  END IF;

  FOREACH i IN ARRAY order_of_locks LOOP
    IF expected[i] > 0 THEN
      UPDATE cqrs_streams s SET version = expected[i] + counts[i]
        WHERE s.stream_key = keys[i] AND s.version = expected[i]
        RETURNING s.stream_id, expected[i] INTO id, found_version;
    ELSIF expected[i] = 0 THEN
      INSERT INTO cqrs_streams (stream_key, application, aggregate_type, aggregate_id, version)
        VALUES (keys[i], applications[i], aggregate_types[i], aggregate_ids[i], counts[i])
        ON CONFLICT (stream_key) DO NOTHING
        RETURNING stream_id, 0 INTO id, found_version;
    ELSE
      INSERT INTO cqrs_streams AS s
          (stream_key, application, aggregate_type, aggregate_id, version)
        VALUES (keys[i], applications[i], aggregate_types[i], aggregate_ids[i], counts[i])
        ON CONFLICT (stream_key) DO UPDATE SET version = s.version + EXCLUDED.version
        RETURNING s.stream_id, s.version - counts[i] INTO id, found_version;
    END IF;
    IF id IS NULL THEN
      -- It may have been this very command that was quicker.
      IF command IS NOT NULL THEN
        PERFORM FROM cqrs_commands c WHERE c.command_id = command AND c.expires_at > now();
        IF FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
      END IF;
      SELECT s.version INTO found_version FROM cqrs_streams s WHERE s.stream_key = keys[i];
      RAISE EXCEPTION USING ERRCODE = 'CQ001', MESSAGE = i || ',' || coalesce(found_version, 0);
    END IF;
    ids[i] := id;
    before[i] := found_version;
    answer[i] := found_version + counts[i];
  END LOOP;

  WITH written AS (
    INSERT INTO cqrs_events
        (stream_id, version, event_id, type, type_version, payload, metadata, recorded_at)
      SELECT ids[e.stream], before[e.stream] + e.after, e.event_id, e.type, e.type_version,
          e.payload, e.metadata, e.recorded_at
        FROM ROWS FROM (jsonb_to_recordset(events) AS (
          stream integer, after bigint, event_id text, type text, type_version integer,
          payload jsonb, metadata jsonb, recorded_at timestamptz
        )) WITH ORDINALITY
          AS e (stream, after, event_id, type, type_version, payload, metadata, recorded_at, n)
        ORDER BY e.n
      RETURNING global_position
  ) SELECT max(global_position) INTO last_position FROM written;

  IF command IS NOT NULL THEN
    INSERT INTO cqrs_commands AS c (command_id, position, outcome, expires_at)
      VALUES (command, last_position, command_outcome,
        now() + command_ttl_s * interval '1 second')
      ON CONFLICT (command_id) DO UPDATE SET position = EXCLUDED.position,
        outcome = EXCLUDED.outcome, expires_at = EXCLUDED.expires_at
        WHERE c.expires_at <= now();
    IF NOT FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
  END IF;
  RETURN last_position || answer;
END
$cqrs$
