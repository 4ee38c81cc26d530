//! What the description says that holds for every request: which problems there can be, what a name is, and that a body
//! has no fields that are not named.
//!
//! So the handlers name only the answers that are their own.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// What the names of VMs match (`wire::VmName`), and those of keys and services.
const NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

/// What every request may be answered with, and when.
const OF_ALL: &[(&str, &str)] = &[
    ("401", "The Authorization header shows no token"),
    ("403", "Who asks may not do this"),
    ("500", "Something failed that has nothing to do with the request"),
];
const OF_PARAMETERS: &[(&str, &str)] = &[("400", "A part of the path or of the query is wrong")];
const OF_BODIES: &[(&str, &str)] = &[
    ("400", "The body is no JSON"),
    ("413", "The body is too long"),
    ("415", "The body is not said to be JSON"),
    ("422", "The body is JSON of another shape"),
];

/// The description as it is served.
pub(super) fn complete(description: &OpenApi) -> serde_json::Result<Value> {
    let mut description = serde_json::to_value(description)?;
    for path in objects(&mut description["paths"]) {
        for operation in objects(path) {
            complete_operation(operation);
        }
    }
    for name in sent(&description) {
        let schema = &mut description["components"]["schemas"][name];
        name_names(schema);
        close(schema);
    }
    Ok(description)
}

fn objects(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_object_mut().into_iter().flat_map(|object| object.values_mut()).filter(|value| value.is_object())
}

fn complete_operation(operation: &mut Value) {
    let has_body = operation.get("requestBody").is_some();
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    let has_parameters = parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == "vm" || (parameter["name"] == "name" && parameter["in"] == "path") {
            parameter["schema"]["pattern"] = NAME.into();
        }
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let bodies = if has_body { OF_BODIES } else { &[] };
    let parameters = if has_parameters { OF_PARAMETERS } else { &[] };
    for (status, when) in OF_ALL.iter().chain(bodies).chain(parameters) {
        responses.entry(*status).or_insert_with(|| json!({ "description": when }));
    }
    for (status, response) in responses {
        if status.starts_with(['4', '5']) {
            response["content"] =
                json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        }
    }
}

/// The schemas of what is sent to the agent, and those that stand in them.
fn sent(description: &Value) -> BTreeSet<String> {
    let operations = description["paths"].as_object().into_iter().flat_map(Map::values).filter_map(Value::as_object);
    let bodies = operations.flat_map(Map::values).filter_map(|operation| operation.get("requestBody"));
    let mut found = BTreeSet::new();
    let mut open: Vec<&Value> = bodies.collect();
    while let Some(value) = open.pop() {
        match value {
            Value::Object(object) => {
                let name = object.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
                if let Some(name) = name.filter(|name| found.insert((*name).to_owned())) {
                    open.push(&description["components"]["schemas"][name]);
                }
                open.extend(object.values());
            }
            Value::Array(array) => open.extend(array),
            _ => {}
        }
    }
    found
}

/// Says of every `vm` or `name` what it looks like.
fn name_names(schema: &mut Value) {
    each_properties(schema, &mut |properties| {
        for name in ["vm", "name"] {
            let Some(property) = properties.get_mut(name) else { continue };
            let kind = &property["type"];
            if kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("string"))) {
                property["pattern"] = NAME.into();
            }
        }
    });
}

fn close(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        let is_map = object.contains_key("additionalProperties");
        if !is_map && (object.contains_key("properties") || object.get("type") == Some(&json!("object"))) {
            object.insert("additionalProperties".into(), false.into());
        }
        object.values_mut().for_each(close);
    } else if let Some(array) = schema.as_array_mut() {
        array.iter_mut().for_each(close);
    }
}

fn each_properties(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    match schema {
        Value::Object(object) => {
            if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
                change(properties);
            }
            object.values_mut().for_each(|value| each_properties(value, change));
        }
        Value::Array(array) => array.iter_mut().for_each(|value| each_properties(value, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi as _;

    use super::*;
    use crate::status::{NewToken, NewVm, Problem};

    #[derive(utoipa::OpenApi)]
    #[openapi(paths(rename), components(schemas(NewVm, NewToken, Problem)))]
    struct Description;

    #[allow(dead_code, reason = "only described")]
    #[utoipa::path(put, path = "/vms/{name}", params(("name" = String, Path)), request_body = NewVm, responses(
        (status = 204),
        (status = 422, description = "Ours"),
    ))]
    fn rename() {}

    #[test]
    fn what_holds_for_all_is_said_once_and_what_is_ours_stays() {
        let described = complete(&Description::openapi()).unwrap();
        let put = &described["paths"]["/vms/{name}"]["put"];
        assert_eq!(put["parameters"][0]["schema"]["pattern"], NAME);
        assert_eq!(put["responses"]["422"]["description"], "Ours");
        for status in ["400", "401", "403", "413", "415", "422", "500"] {
            let content = &put["responses"][status]["content"];
            assert!(content["application/problem+json"].is_object(), "{status}: {content}");
        }
        assert!(put["responses"]["204"].get("content").is_none());
        let vm = &described["components"]["schemas"]["NewVm"];
        assert_eq!((&vm["additionalProperties"], &vm["properties"]["name"]["pattern"]), (&json!(false), &json!(NAME)));
    }

    #[test]
    fn the_pattern_is_what_the_names_of_vms_are() {
        for (name, good) in [("a", true), ("a-b", true), ("-a", false), ("a-", false), ("A", false), ("", false)] {
            assert_eq!(name.parse::<wire::VmName>().is_ok(), good, "{name}");
        }
    }
}
