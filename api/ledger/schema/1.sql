CREATE TABLE meta (
  name   TEXT NOT NULL PRIMARY KEY,
  amount BIGINT NOT NULL,
  label  TEXT NOT NULL
);
CREATE TABLE issuance (
  seq                 {{sequence}},
  issuer_key_id       {{bytes}} NOT NULL,
  serial              {{bytes}} NOT NULL,
  certificate_sha256  {{bytes}} NOT NULL,
  spki_sha256         {{bytes}} NOT NULL,
  holding             {{bytes}} NOT NULL,
  recorded_at         BIGINT NOT NULL,
  not_before          BIGINT NOT NULL,
  not_after           BIGINT NOT NULL,
  requested_lifetime  BIGINT NOT NULL,
  identity            TEXT NOT NULL,
  trust_domain        TEXT NOT NULL,
  namespace           TEXT NOT NULL,
  service_account     TEXT NOT NULL,
  service_account_uid TEXT NOT NULL,
  sans                TEXT NOT NULL,
  key_algorithm       TEXT NOT NULL,
  key_bits            BIGINT NOT NULL,
  signature_algorithm TEXT NOT NULL,
  issuer              TEXT NOT NULL,
  root_sha256         {{bytes}} NOT NULL,
  root_subject        TEXT NOT NULL,
  pod                 TEXT NOT NULL,
  pod_uid             TEXT NOT NULL,
  node                TEXT NOT NULL,
  credential          TEXT NOT NULL,
  cluster             TEXT NOT NULL,
  peer                TEXT NOT NULL,
  impersonated        BIGINT NOT NULL,
  request_name        TEXT NOT NULL,
  request_uid         TEXT NOT NULL,
  replica             TEXT NOT NULL,
  source              TEXT NOT NULL,
  delivered           BIGINT NOT NULL,
  proven_at           BIGINT NOT NULL DEFAULT 0,
  der                 {{bytes}} NOT NULL
);
CREATE UNIQUE INDEX issuance_key ON issuance (serial, issuer_key_id);
CREATE INDEX issuance_certificate ON issuance (certificate_sha256);
CREATE INDEX issuance_recorded ON issuance (recorded_at, seq, not_after, holding);
CREATE INDEX issuance_holding ON issuance (holding, recorded_at, seq);
CREATE INDEX issuance_identity ON issuance (identity, recorded_at, seq);
CREATE INDEX issuance_namespace ON issuance (namespace, recorded_at, seq);
CREATE INDEX issuance_node ON issuance (node, recorded_at, seq);
CREATE TABLE san (
  san TEXT NOT NULL,
  seq BIGINT NOT NULL,
  PRIMARY KEY (san, seq)
){{without_rowid}};
CREATE INDEX san_seq ON san (seq);
CREATE TABLE refusal (
  seq             {{sequence}},
  key             {{bytes}} NOT NULL UNIQUE,
  window_at       BIGINT NOT NULL,
  reason          TEXT NOT NULL,
  code            TEXT NOT NULL,
  identity        TEXT NOT NULL,
  namespace       TEXT NOT NULL,
  service_account TEXT NOT NULL,
  peer            TEXT NOT NULL,
  replica         TEXT NOT NULL,
  others          BIGINT NOT NULL,
  count           BIGINT NOT NULL,
  first_at        BIGINT NOT NULL,
  last_at         BIGINT NOT NULL
);
CREATE INDEX refusal_window ON refusal (window_at, seq);
CREATE TABLE origin (
  replica  TEXT NOT NULL,
  source   TEXT NOT NULL,
  first_at BIGINT NOT NULL,
  last_at  BIGINT NOT NULL,
  records  BIGINT NOT NULL,
  PRIMARY KEY (replica, source)
);
CREATE TABLE gap (
  replica TEXT NOT NULL,
  kind    TEXT NOT NULL,
  from_at BIGINT NOT NULL,
  to_at   BIGINT NOT NULL,
  records BIGINT NOT NULL,
  PRIMARY KEY (replica, kind, from_at)
);
CREATE TABLE run (
  seq        {{sequence}},
  replica    TEXT NOT NULL,
  started_at BIGINT NOT NULL,
  alive_at   BIGINT NOT NULL,
  ended_at   BIGINT NOT NULL
);
CREATE TABLE shipper (
  store_id        TEXT NOT NULL PRIMARY KEY,
  replica         TEXT NOT NULL,
  shipped_through BIGINT NOT NULL,
  refusals_sent   BIGINT NOT NULL,
  seen_at         BIGINT NOT NULL
);
CREATE TABLE again (
  seq BIGINT NOT NULL PRIMARY KEY
);
