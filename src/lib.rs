//! trigger -> event -> run -> step -> checkpoint -> notify

pub mod domain;
