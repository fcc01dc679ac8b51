-- Version 2: compaction, and messages that are sent in SQL. Hosts that know only version 1 work beside it.

-- What is before `clean` was compacted. `tombstones_at` is when the oldest tombstone that was left there was committed.
alter table partition add column clean bigint not null default 0, add column tombstones_at bigint;

-- Messages that users of the database leave for topics in transactions of their own. A host appends each and removes it, in one step.
create table outbox (
  id bigint generated always as identity primary key,
  topic text not null,
  key bytea,
  payload bytea,
  headers jsonb,
  deliver_at timestamptz,
  sent_at timestamptz not null default clock_timestamp(),
  -- How often it could not be sent, why the last time, and when it is tried again.
  tries int not null default 0,
  error text,
  due timestamptz not null default clock_timestamp()
);
create index outbox_due on outbox (due);

-- Leaves a message for a topic, in the transaction of whoever calls it: it is sent once that commits. Returns its number in the outbox.
create function send_bytes(topic text, key bytea, payload bytea, headers jsonb default null, deliver_at timestamptz default null)
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
  insert into outbox (topic, key, payload, headers, deliver_at)
    values (send_bytes.topic, send_bytes.key, send_bytes.payload, send_bytes.headers, send_bytes.deliver_at) returning id into number;
  return number;
end $$;

create function send(topic text, key text, payload jsonb, headers jsonb default null, deliver_at timestamptz default null)
  returns bigint language sql set search_path from current as $$
  select send_bytes(topic, convert_to(key, 'UTF8'), convert_to(payload::text, 'UTF8'), headers, deliver_at)
$$;
