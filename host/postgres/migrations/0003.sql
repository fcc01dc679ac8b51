-- Version 3: no message is left for a time that never comes. Hosts that know only version 2 work beside it.

create or replace function send_bytes(topic text, key bytea, payload bytea, headers jsonb default null, deliver_at timestamptz default null)
  returns bigint language plpgsql set search_path from current as $$
declare
  number bigint;
begin
  if not exists (select from topic as t where t.name = send_bytes.topic) then
    raise exception 'topic % does not exist', send_bytes.topic
      using errcode = 'undefined_object', hint = 'create it first: millrace topic create ' || send_bytes.topic;
  end if;
  if headers is not null and jsonb_typeof(headers) <> 'object' then
    raise exception 'headers are a JSON object of names and texts, such as {"source": "shop"}' using errcode = 'invalid_parameter_value';
  end if;
  if not isfinite(send_bytes.deliver_at) then
    raise exception 'deliver_at is %, which never comes; give a time, or null to deliver at once', send_bytes.deliver_at
      using errcode = 'invalid_parameter_value';
  end if;
  insert into outbox (topic, key, payload, headers, deliver_at)
    values (send_bytes.topic, send_bytes.key, send_bytes.payload, send_bytes.headers, send_bytes.deliver_at) returning id into number;
  return number;
end $$;
