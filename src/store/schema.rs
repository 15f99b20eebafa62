//! The tables, as diesel sees them; `migrations/` makes them.

diesel::table! {
    studies (id) {
        id -> Uuid,
        project -> Text,
        created_by -> Text,
        name -> Text,
        labels -> Jsonb,
        workload -> Text,
        state -> Text,
        ended_because -> Nullable<Text>,
        ended_detail -> Nullable<Text>,
        phase -> Text,
        waiting_for -> Nullable<Text>,
        revision -> Integer,
        wave -> Integer,
        priority -> Integer,
        evidence_version -> BigInt,
        advanced_version -> BigInt,
        remaining_probes -> BigInt,
        remaining_device_secs -> Double,
        next_event_seq -> BigInt,
        last_claimed_at -> Nullable<Timestamptz>,
        analysis -> Nullable<Jsonb>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        started_at -> Nullable<Timestamptz>,
        ended_at -> Nullable<Timestamptz>,
        counted -> Nullable<Jsonb>,
        counted_revision -> Nullable<Integer>,
    }
}

diesel::table! {
    study_revisions (study, revision) {
        study -> Uuid,
        revision -> Integer,
        definition -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    devices (id) {
        id -> Uuid,
        host -> Text,
        hardware -> Text,
        backend -> Text,
        model -> Text,
        threads -> Integer,
        memory_bytes -> BigInt,
        available_bytes -> BigInt,
        slots -> Integer,
        last_seen -> Timestamptz,
    }
}

diesel::table! {
    probes (id) {
        id -> Uuid,
        project -> Text,
        created_by -> Text,
        identity -> Text,
        inputs -> Text,
        kind -> Text,
        batch_size -> BigInt,
        backend -> Text,
        device_model -> Text,
        exclusive -> Bool,
        runner -> Text,
        spec -> Jsonb,
        state -> Text,
        reason -> Nullable<Text>,
        detail -> Nullable<Text>,
        attempt -> Integer,
        crashes -> Integer,
        losses -> Integer,
        not_before -> Timestamptz,
        lease -> Nullable<Uuid>,
        lease_expires_at -> Nullable<Timestamptz>,
        worker -> Nullable<Text>,
        device -> Nullable<Uuid>,
        cancel_requested -> Bool,
        progress_phase -> Nullable<Text>,
        progress_fraction -> Nullable<Double>,
        stderr_tail -> Nullable<Text>,
        device_secs -> Double,
        created_at -> Timestamptz,
        started_at -> Nullable<Timestamptz>,
        ended_at -> Nullable<Timestamptz>,
        read_from -> Nullable<Uuid>,
    }
}

diesel::table! {
    study_probes (study, revision, wave, position) {
        study -> Uuid,
        revision -> Integer,
        probe -> Uuid,
        wave -> Integer,
        position -> Integer,
        reused -> Bool,
        why -> Text,
        open -> Bool,
        predicted_bytes -> Nullable<BigInt>,
        predicted_lower_bytes -> Nullable<BigInt>,
        predicted_upper_bytes -> Nullable<BigInt>,
        spec -> Nullable<Jsonb>,
        paid_before -> Bool,
    }
}

diesel::table! {
    measurements (probe, attempt, seq) {
        probe -> Uuid,
        attempt -> Integer,
        seq -> Integer,
        metric -> Text,
        step -> Nullable<BigInt>,
        value -> Double,
        unit -> Text,
        elapsed_secs -> Double,
    }
}

diesel::table! {
    recommendations (id) {
        id -> Uuid,
        study -> Uuid,
        revision -> Integer,
        topic -> Text,
        grade -> Text,
        body -> Jsonb,
        stale -> Bool,
        invalidated_by -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    study_events (study, seq) {
        study -> Uuid,
        seq -> BigInt,
        kind -> Text,
        data -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    kept_answers (project, caller, operation, key) {
        project -> Text,
        caller -> Text,
        operation -> Text,
        key -> Text,
        request_sha256 -> Text,
        status -> Nullable<Integer>,
        headers -> Nullable<Jsonb>,
        body -> Nullable<Text>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    datasets (id) {
        id -> Uuid,
        project -> Text,
        created_by -> Text,
        name -> Text,
        format -> Text,
        source_sha256 -> Text,
        source_bytes -> BigInt,
        options -> Jsonb,
        options_hash -> Text,
        content -> Text,
        content_bytes -> BigInt,
        contents -> Jsonb,
        description -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    tokens (id) {
        id -> Uuid,
        name -> Text,
        project -> Nullable<Text>,
        scopes -> Array<Text>,
        secret_sha256 -> Binary,
        created_at -> Timestamptz,
        expires_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
        last_used_at -> Nullable<Timestamptz>,
    }
}

diesel::joinable!(study_probes -> studies (study));
diesel::joinable!(study_probes -> probes (probe));
diesel::joinable!(measurements -> probes (probe));
diesel::allow_tables_to_appear_in_same_query!(studies, probes, study_probes, measurements,);
