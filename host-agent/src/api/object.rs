//! A JSON object that stands for a value.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A value whose JSON is an object. Serde would also take an array of the fields, in the order in which they happen to
/// stand in the source.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Object)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::NewVm;

    #[test]
    fn only_an_object_with_known_fields_once_each_is_taken() {
        let parse = |json: &str| serde_json::from_str::<Object<NewVm>>(json).map(|Object(vm)| vm.name.to_string());
        assert_eq!(parse(r#"{"name":"a"}"#).unwrap(), "a");
        for json in [r#"["a"]"#, r#"{}"#, r#""a""#, "null", r#"{"name":"a","name":"b"}"#, r#"{"name":"a","x":1}"#] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
