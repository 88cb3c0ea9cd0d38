-- Append one event to one stream: what most commits are. As cqrs_append_v1, without its arrays.
--
-- ARGUMENTS  the stream's key and its parts, its expected version (-1: any)
--            the event
--            command (NULL for none), its outcome, seconds to remember it
-- RETURNS    {position, version}
-- ERRORS     CQ001 "1,<the stream's version>"   CQ002   23505   as cqrs_append_v1
-- LOCKS      as cqrs_append_v1
-- COST       2 statements; 2 more for a command
CREATE FUNCTION cqrs_append_one_v1(
  key text, application text, aggregate_type text, aggregate_id text, expected bigint,
  event_id text, type text, type_version integer, payload jsonb, metadata jsonb,
  recorded_at timestamptz,
  command text, command_outcome text, command_ttl_s bigint
) RETURNS bigint[] LANGUAGE plpgsql AS $cqrs$
#variable_conflict use_column
DECLARE
  id bigint;
  new_version bigint := expected + 1;
  new_position bigint;
BEGIN
  PERFORM pg_advisory_xact_lock_shared(
    (1668444019::bigint << 32) | 'cqrs_events'::regclass::oid::bigint);
  IF command IS NOT NULL THEN
    PERFORM FROM cqrs_commands c WHERE c.command_id = command AND c.expires_at > now();
    IF FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
  END IF;

  IF expected > 0 THEN
    UPDATE cqrs_streams s SET version = new_version
      WHERE s.stream_key = key AND s.version = expected
      RETURNING s.stream_id INTO id;
  ELSIF expected = 0 THEN
    INSERT INTO cqrs_streams (stream_key, application, aggregate_type, aggregate_id, version)
      VALUES ($1, $2, $3, $4, 1)
      ON CONFLICT (stream_key) DO NOTHING
      RETURNING stream_id INTO id;
  ELSE
    INSERT INTO cqrs_streams AS s (stream_key, application, aggregate_type, aggregate_id, version)
      VALUES ($1, $2, $3, $4, 1)
      ON CONFLICT (stream_key) DO UPDATE SET version = s.version + 1
      RETURNING s.stream_id, s.version INTO id, new_version;
  END IF;
  IF id IS NULL THEN
    -- It may have been this very command that was quicker.
    IF command IS NOT NULL THEN
      PERFORM FROM cqrs_commands c WHERE c.command_id = command AND c.expires_at > now();
      IF FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
    END IF;
    SELECT s.version INTO id FROM cqrs_streams s WHERE s.stream_key = key;
    RAISE EXCEPTION USING ERRCODE = 'CQ001', MESSAGE = '1,' || coalesce(id, 0);
  END IF;

  INSERT INTO cqrs_events
      (stream_id, version, event_id, type, type_version, payload, metadata, recorded_at)
    VALUES (id, new_version, $6, $7, $8, $9, $10, $11)
    RETURNING global_position INTO new_position;

  IF command IS NOT NULL THEN
    INSERT INTO cqrs_commands AS c (command_id, position, outcome, expires_at)
      VALUES (command, new_position, command_outcome,
        now() + command_ttl_s * interval '1 second')
      ON CONFLICT (command_id) DO UPDATE SET position = EXCLUDED.position,
        outcome = EXCLUDED.outcome, expires_at = EXCLUDED.expires_at
        WHERE c.expires_at <= now();
    IF NOT FOUND THEN RAISE EXCEPTION 'command' USING ERRCODE = 'CQ002'; END IF;
  END IF;
  RETURN ARRAY[new_position, new_version];
END
$cqrs$
