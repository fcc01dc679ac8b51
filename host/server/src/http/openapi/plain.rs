//! Small types, such as an offset or a topic's name, are shown as the number or the text that they are in JSON. The derive refers to
//! them as components of their own; here each reference is replaced.

use std::collections::BTreeMap;

use utoipa::Modify;
use utoipa::openapi::schema::{AdditionalProperties, ArrayItems, Object, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr};

/// Where references to components point.
const COMPONENTS: &str = "#/components/schemas/";

/// Shows plain values in place of references to them.
pub(super) struct Plain;

impl Modify for Plain {
    fn modify(&self, document: &mut OpenApi) {
        let Some(components) = &mut document.components else {
            return;
        };
        let plain = Values::taken_from(&mut components.schemas);
        for schema in components.schemas.values_mut() {
            plain.show(schema);
        }
    }
}

/// The components that are plain values, by name.
struct Values(BTreeMap<String, Object>);

impl Values {
    fn taken_from(schemas: &mut BTreeMap<String, RefOr<Schema>>) -> Self {
        let mut values = BTreeMap::new();
        schemas.retain(|name, schema| match schema {
            RefOr::T(Schema::Object(object)) if is_plain(object) => {
                values.insert(name.clone(), object.clone());
                false
            }
            _ => true,
        });
        Self(values)
    }

    /// Replaces the references in a schema.
    fn show(&self, schema: &mut RefOr<Schema>) {
        match schema {
            RefOr::Ref(reference) => {
                if let Some(value) = self.value(reference) {
                    *schema = RefOr::T(Schema::Object(value));
                }
            }
            RefOr::T(Schema::Object(object)) => {
                for property in object.properties.values_mut() {
                    self.show(property);
                }
                if let Some(AdditionalProperties::RefOr(value)) =
                    object.additional_properties.as_deref_mut()
                {
                    self.show(value);
                }
            }
            RefOr::T(Schema::Array(array)) => {
                if let ArrayItems::RefOrSchema(item) = &mut array.items {
                    self.show(item);
                }
            }
            RefOr::T(Schema::OneOf(one_of)) => {
                self.show_all(&mut one_of.items);
                if let [
                    RefOr::T(Schema::Object(value)),
                    RefOr::T(Schema::Object(null)),
                ] = &one_of.items[..]
                    && null.schema_type == SchemaType::Type(Type::Null)
                {
                    let mut value = value.clone();
                    or_null(&mut value);
                    *schema = RefOr::T(Schema::Object(value));
                }
            }
            RefOr::T(Schema::AllOf(all_of)) => self.show_all(&mut all_of.items),
            RefOr::T(Schema::AnyOf(any_of)) => self.show_all(&mut any_of.items),
            // The derives here make no other kinds.
            RefOr::T(_) => {}
        }
    }

    fn show_all(&self, schemas: &mut [RefOr<Schema>]) {
        for schema in schemas {
            self.show(schema);
        }
    }

    /// The value that is referred to, with the reference's description.
    fn value(&self, reference: &Ref) -> Option<Object> {
        let name = reference.ref_location.strip_prefix(COMPONENTS)?;
        let mut value = self.0.get(name)?.clone();
        value.description = Some(&reference.description)
            .filter(|text| !text.is_empty())
            .cloned();
        Some(value)
    }
}

/// Whether it is a number or a text, and not one of a few texts.
fn is_plain(object: &Object) -> bool {
    let types = [Type::Integer, Type::String].map(SchemaType::Type);
    types.contains(&object.schema_type) && object.enum_values.is_none()
}

/// The value may also be null.
pub(super) fn or_null(value: &mut Object) {
    if let SchemaType::Type(of) = value.schema_type.clone() {
        value.schema_type = SchemaType::Array(vec![of, Type::Null]);
    }
}
